"""Recommendations of a trained model, with the users' own ids, titles and reasons."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import polars as pl

from hlrcml_jax import files
from hlrcml_jax.data.interactions import Dataset
from hlrcml_jax.errors import UserError
from hlrcml_jax.models.cml import CML, user_rows
from hlrcml_jax.scoring import Ranking, Scorer

WRITERS = {
    "parquet": pl.DataFrame.write_parquet,
    "csv": pl.DataFrame.write_csv,
    "jsonl": pl.DataFrame.write_ndjson,
}


def user_numbers(dataset: Dataset, users: str) -> np.ndarray:
    """The rows of comma-separated user ids; of all users for "".

    Raises:
      UserError: an id that the data does not have.
    """
    if not users:
        return np.arange(dataset.n_users)
    rows = {str(id): row for row, id in enumerate(dataset.user_ids)}
    wanted = [id.strip() for id in users.split(",")]
    for id in wanted:
        if id not in rows:
            raise UserError(f"recommend.users: there is no user {id!r} in the data.")
    return np.array([rows[id] for id in wanted])


def frames(
    scorer: Scorer, params: dict[str, Any], dataset: Dataset, user_C: np.ndarray, k: int
) -> Iterator[pl.DataFrame]:
    """The k best new items of each user, a chunk of users at a time.

    Args:
      scorer: knows what is not new.
      params: replicated over the devices.
      dataset: for ids and titles.
      user_C: user numbers.
      k: length of the lists.

    Yields:
      Frames of `user_id`, `item_id`, `title` (where the data has titles), `score` and `rank`
      (from 1), in order of user and rank.
    """
    for ranking in scorer.rank(params, user_C, k):
        yield frame(ranking, dataset)


def frame(ranking: Ranking, dataset: Dataset) -> pl.DataFrame:
    """A ranking as a frame; places without an item are left out."""
    n_users, length = ranking.item_CxK.shape
    item_R = ranking.item_CxK.ravel()
    filled_R = item_R >= 0
    user_R = np.repeat(ranking.user_C, length)[filled_R]
    item_R = item_R[filled_R]
    columns = {
        "user_id": dataset.user_ids.gather(user_R),
        "item_id": dataset.item_ids.gather(item_R),
        "score": ranking.score_CxK.ravel()[filled_R],
        "rank": np.tile(np.arange(1, length + 1), n_users)[filled_R],
    }
    if dataset.titles is not None:
        columns["title"] = dataset.titles.gather(item_R)
    order = ["user_id", "item_id", "title", "score", "rank"]
    return pl.DataFrame({name: columns[name] for name in order if name in columns})


def write(table: pl.DataFrame, path: pathlib.Path, format: str) -> None:
    """Writes a frame as "parquet", "csv" or "jsonl"; the file is whole or not there."""
    files.write(path, lambda scratch: WRITERS[format](table, scratch))


def main_reasons(
    model: CML, params: dict[str, Any], ranking: Ranking
) -> list[tuple[int, float]] | None:
    """For each item recommended to one user, the past item that its relation attends to most.

    Args:
      model: the model.
      params: of one device.
      ranking: of one user.

    Returns:
      (item number, share of the user attention) of each place, or None if the model attends to
      nothing.
    """
    mask_S = ranking.mask_CxS[0]
    if not model.uses_preferences or not mask_S.any():
        return None
    items_IxD = np.asarray(params["items"])
    target_KxD = items_IxD[ranking.item_CxK[0]]
    n = len(target_KxD)
    prefs_1xSxD = items_IxD[ranking.prefs_CxS]
    user_1xD = user_rows(params, ranking.user_C, prefs_1xSxD, ranking.mask_CxS)
    user_KxD, prefs_KxSxD = np.repeat(user_1xD, n, axis=0), np.repeat(prefs_1xSxD, n, axis=0)
    mask_KxS = np.repeat(ranking.mask_CxS, n, axis=0)
    shares = jax.jit(functools.partial(model.apply, method="preference_shares"))
    share_KxS = shares({"params": params["model"]}, user_KxD, target_KxD, prefs_KxSxD, mask_KxS)
    share_KxS = np.asarray(share_KxS)
    best_K = share_KxS.argmax(axis=1)
    return [
        (int(ranking.prefs_CxS[0, slot]), float(share_S[slot]))
        for slot, share_S in zip(best_K, share_KxS, strict=True)
    ]
