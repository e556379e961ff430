"""Ranked lists, and the interface of rankers."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The top K items of a chunk of C users.

    Attributes:
      user_C: user indices.
      item_CxK: item indices in descending order of score, -1 for unfilled ranks.
      score_CxK: their scores.
      prefs_CxS: item indices of the preferences used.
      mask_CxS: True where a preference is real.
    """

    user_C: np.ndarray
    item_CxK: np.ndarray
    score_CxK: np.ndarray
    prefs_CxS: np.ndarray
    mask_CxS: np.ndarray

    @classmethod
    def empty(cls, k: int) -> "Ranking":
        """A ranking without users."""
        none = np.empty((0, k), np.int32)
        return cls(np.empty(0, np.int32), none, none.astype(np.float32), none, none.astype(bool))


class Ranker(Protocol):
    """Ranks the catalogue for users; see `scorer.Scorer`."""

    def rank(
        self,
        params: dict[str, Any],
        user_C: np.ndarray,
        k: int,
        hide_known: bool = True,
        only_I: np.ndarray | None = None,
        candidates: int = 0,
    ) -> Iterator[Ranking]:
        """The top k items of each user, in chunks of users."""
        ...

    def preferences(self, user_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Item indices (C, S) of the preferences, and their mask; fixed for each user."""
        ...
