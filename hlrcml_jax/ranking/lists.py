"""Ranked lists, and what gives them."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best items of some users.

    Attributes:
      user_C: user numbers.
      item_CxK: item numbers in descending order of score, -1 where none is left.
      score_CxK: their scores.
      prefs_CxS: the preferences that were used, item numbers.
      mask_CxS: True where a preference is real.
    """

    user_C: np.ndarray
    item_CxK: np.ndarray
    score_CxK: np.ndarray
    prefs_CxS: np.ndarray
    mask_CxS: np.ndarray

    @classmethod
    def empty(cls, k: int) -> "Ranking":
        """Of no users."""
        none = np.empty((0, k), np.int32)
        return cls(np.empty(0, np.int32), none, none.astype(np.float32), none, none.astype(bool))


class Ranker(Protocol):
    """What ranks the catalogue for users; see `scorer.Scorer`."""

    def rank(
        self,
        params: dict[str, Any],
        user_C: np.ndarray,
        k: int,
        hide_known: bool = True,
        only_I: np.ndarray | None = None,
    ) -> Iterator[Ranking]:
        """The k best items of each user, a chunk of users at a time."""
        ...

    def preferences(self, user_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Preferences as item numbers, (C, S), and their mask; a user's are always the same."""
        ...
