"""Rankings as frames and files, with original ids and titles."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from hlrcml_jax import processes, storage
from hlrcml_jax.data.dataset import Dataset, Lookup, count_items
from hlrcml_jax.errors import UserError, is_unicode, quoted
from hlrcml_jax.ranking.lists import Ranking

USERS_PER_PART = 20_000  # of a file that is written in parts

WRITERS = {
    "parquet": pl.LazyFrame.sink_parquet,
    "csv": storage.sink_csv,
    "jsonl": pl.LazyFrame.sink_ndjson,
}


def find(lookup: Lookup, wanted: Iterable[Any]) -> tuple[np.ndarray, list[str]]:
    """(index of each wanted id, -1 where there is none; the wanted ids as text).

    Args:
      lookup: of all ids, by index.
      wanted: ids to look up, where 196 and "196" are the same; a whole float is an integer where
        the ids are integers.
    """
    dtype = lookup.ids.dtype
    whole = dtype.is_integer()
    texts = [_as_text(id, whole) for id in wanted]
    asked = pl.Series(texts, dtype=pl.String).cast(dtype, strict=False)
    return lookup(asked), texts


def missing(index_N: np.ndarray, texts: Sequence[str]) -> list[str]:
    """The wanted ids without an index, from the result of `find`."""
    return [text for text, index in zip(texts, index_N, strict=True) if index < 0]


def indices(lookup: Lookup, wanted: Iterable[Any], kind: str) -> np.ndarray:
    """Indices of the wanted ids, in their order; see `find`.

    Args:
      lookup: of all ids, by index.
      wanted: ids to look up.
      kind: "user" or "item", for the error message.

    Raises:
      UserError: naming the first id that is not in the data.
    """
    index, texts = find(lookup, wanted)
    if np.any(index < 0):
        raise UserError(f"there is no {kind} {quoted(texts[np.argmin(index)])} in the data.")
    return index


def _as_text(id: Any, whole: bool) -> str:
    if whole and isinstance(id, float | np.floating) and float(id).is_integer():
        return str(int(id))
    try:
        text = str(id).strip()
    except ValueError:  # an integer of more digits than Python writes
        return quoted(id)
    return text if is_unicode(text) else quoted(id)


def frame(ranking: Ranking, user_ids: pl.Series, dataset: Dataset) -> pl.DataFrame:
    """A ranking as a frame; unfilled ranks are left out.

    Args:
      ranking: of some users.
      user_ids: by user index.
      dataset: for item ids and titles.

    Returns:
      `user_id`, `item_id`, `title` (if the data has titles), `score` and `rank` (from 1),
      ordered by user and rank.
    """
    n_users, length = ranking.item_CxK.shape
    item_R = ranking.item_CxK.ravel()
    filled_R = item_R >= 0
    user_R = np.repeat(ranking.user_C, length)[filled_R]
    item_R = item_R[filled_R]
    return pl.DataFrame(
        {
            "user_id": user_ids.gather(user_R),
            **item_columns(item_R, dataset),
            "score": ranking.score_CxK.ravel()[filled_R],
            "rank": np.tile(np.arange(1, length + 1), n_users)[filled_R],
        }
    )


def pairs(rankings: Sequence[Ranking]) -> tuple[np.ndarray, np.ndarray]:
    """(user indices, item indices) of the rows of `concat(rankings, ...)`."""
    filled = [ranking.item_CxK >= 0 for ranking in rankings]
    users = [
        np.broadcast_to(ranking.user_C[:, None], ranking.item_CxK.shape)[is_filled]
        for ranking, is_filled in zip(rankings, filled, strict=True)
    ]
    items = [
        ranking.item_CxK[is_filled] for ranking, is_filled in zip(rankings, filled, strict=True)
    ]
    return np.concatenate(users), np.concatenate(items)


def concat(rankings: Iterable[Ranking], user_ids: pl.Series, dataset: Dataset) -> pl.DataFrame:
    """Rankings as one frame; see `frame`."""
    tables = [frame(ranking, user_ids, dataset) for ranking in rankings]
    return pl.concat(tables or [frame(Ranking.empty(0), user_ids, dataset)])


def new_ids(texts: Sequence[str], user_ids: pl.Series) -> pl.Series:
    """Ids of users who are not in the data, of the type of those who are.

    Raises:
      UserError: for an id that is text where those of the data are integers.
    """
    ids = pl.Series(texts, dtype=pl.String).cast(user_ids.dtype, strict=False)
    if ids.null_count():
        stranger = texts[ids.is_null().arg_max() or 0]
        raise UserError(f"there can be no user {quoted(stranger)}: ids of users are integers.")
    return ids


def popular(ids: pl.Series, dataset: Dataset, k: int, only_I: np.ndarray | None) -> pl.DataFrame:
    """The most popular items for each of some users who are not in the data; as `frame`.

    Args:
      ids: of the users, see `new_ids`.
      dataset: for popularity, item ids and titles.
      k: items per user.
      only_I: True for the items to choose from; None for all.
    """
    item_T = np.argsort(-count_items(dataset.train), kind="stable")
    item_K = (item_T if only_I is None else item_T[only_I[item_T]])[:k]
    item_R = np.tile(item_K, len(ids))
    columns: dict[str, Any] = {"user_id": ids.gather(np.repeat(np.arange(len(ids)), len(item_K)))}
    columns |= item_columns(item_R, dataset)
    columns["score"] = pl.Series([None] * len(item_R), dtype=pl.Float32)
    columns["rank"] = np.tile(np.arange(1, len(item_K) + 1), len(ids))
    return pl.DataFrame(columns)


def item_columns(item_R: np.ndarray, dataset: Dataset, prefix: str = "") -> dict[str, pl.Series]:
    """Columns `item_id` and, if the data has titles, `title`, of item indices."""
    columns = {f"{prefix}item_id": dataset.item_ids.gather(item_R)}
    if dataset.titles is not None:
        columns[f"{prefix}title"] = dataset.titles.gather(item_R)
    return columns


def write_in_parts(
    path: pathlib.Path,
    format: str,
    user_C: np.ndarray,
    make: Callable[[np.ndarray], pl.DataFrame],
    depends_on: Any,
) -> int:
    """Writes a table of many users in parts; an interrupted call is resumed by the same call.

    Args:
      path: of the file, written atomically.
      format: "parquet", "csv" or "jsonl".
      user_C: user indices.
      make: maps some of them to their table.
      depends_on: everything else the table depends on; finished parts with the same are reused.

    Returns:
      Number of rows.
    """
    digest = hashlib.sha256(json.dumps(depends_on).encode() + user_C.tobytes()).hexdigest()[:16]
    folder = path.parent / f".parts-{digest}"
    parts = []
    for start in range(0, len(user_C), USERS_PER_PART):
        parts.append(folder / f"{start:012}.parquet")
        if not processes.any_process(parts[-1].exists()):
            table = make(user_C[start : start + USERS_PER_PART])
            write = table.write_parquet
            processes.in_first_process(
                lambda part=parts[-1], write=write: storage.write(part, write)
            )

    def join() -> int:
        with storage.local(parts) as paths:
            # Parts of users who get what is popular have no reasons.
            table = pl.scan_parquet(paths, glob=False, missing_columns="insert")
            storage.write(path, lambda scratch: WRITERS[format](table, scratch))
            n_rows = table.select(pl.len()).collect().item()
        for part in parts:
            part.unlink()
        if not storage.is_remote(folder):  # buckets have no folders
            folder.rmdir()
        return n_rows

    return processes.in_first_process(join) or 0
