"""Recommendations as frames and files, with the users' own ids and the items' titles."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from hlrcml_jax import processes, storage
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.errors import UserError
from hlrcml_jax.ranking.lists import Ranking

USERS = 20_000  # of a part of a file

WRITERS = {
    "parquet": pl.LazyFrame.sink_parquet,
    "csv": pl.LazyFrame.sink_csv,
    "jsonl": pl.LazyFrame.sink_ndjson,
}


def numbers(ids: pl.Series, wanted: Iterable[Any], what: str) -> np.ndarray:
    """The numbers of some ids, in their order; 196 and "196" are the same id.

    Args:
      ids: all of them, by number.
      wanted: those to find.
      what: they are called in a sentence about one that does not exist.

    Raises:
      UserError: naming the first id that the data does not have.
    """
    wanted = [str(id).strip() for id in wanted]
    table = pl.DataFrame({"id": ids}).with_row_index("number")
    asked = pl.DataFrame({"id": pl.Series(wanted, dtype=pl.String).cast(ids.dtype, strict=False)})
    found = asked.join(table, on="id", how="left", maintain_order="left")["number"]
    if found.null_count():
        unknown = wanted[found.is_null().to_list().index(True)]
        raise UserError(f"there is no {what} {unknown!r} in the data.")
    return found.to_numpy().astype(np.int64)


def frame(ranking: Ranking, user_ids: pl.Series, dataset: Dataset) -> pl.DataFrame:
    """A ranking as a frame; places without an item are left out.

    Args:
      ranking: of some users.
      user_ids: by user number.
      dataset: for item ids and titles.

    Returns:
      `user_id`, `item_id`, `title` (where the data has titles), `score` and `rank` (from 1), in
      order of user and rank.
    """
    n_users, length = ranking.item_CxK.shape
    item_R = ranking.item_CxK.ravel()
    filled_R = item_R >= 0
    user_R = np.repeat(ranking.user_C, length)[filled_R]
    item_R = item_R[filled_R]
    return pl.DataFrame(
        {
            "user_id": user_ids.gather(user_R),
            **named(item_R, dataset),
            "score": ranking.score_CxK.ravel()[filled_R],
            "rank": np.tile(np.arange(1, length + 1), n_users)[filled_R],
        }
    )


def pairs(rankings: Sequence[Ranking]) -> tuple[np.ndarray, np.ndarray]:
    """(user numbers, item numbers) of the rows that `frame` makes of rankings."""
    filled = [ranking.item_CxK >= 0 for ranking in rankings]
    users = [
        np.broadcast_to(ranking.user_C[:, None], ranking.item_CxK.shape)[is_filled]
        for ranking, is_filled in zip(rankings, filled, strict=True)
    ]
    items = [
        ranking.item_CxK[is_filled] for ranking, is_filled in zip(rankings, filled, strict=True)
    ]
    return np.concatenate(users), np.concatenate(items)


def of_rankings(rankings: Iterable[Ranking], user_ids: pl.Series, dataset: Dataset) -> pl.DataFrame:
    """Rankings as one frame; see `frame`."""
    tables = [frame(ranking, user_ids, dataset) for ranking in rankings]
    return pl.concat(tables or [frame(Ranking.empty(0), user_ids, dataset)])


def named(item_R: np.ndarray, dataset: Dataset, prefix: str = "") -> dict[str, pl.Series]:
    """Columns `item_id` and, where the data has titles, `title`."""
    columns = {f"{prefix}item_id": dataset.item_ids.gather(item_R)}
    if dataset.titles is not None:
        columns[f"{prefix}title"] = dataset.titles.gather(item_R)
    return columns


def write_in_parts(
    path: pathlib.Path,
    format: str,
    user_C: np.ndarray,
    make: Callable[[np.ndarray], pl.DataFrame],
    of: Any,
) -> int:
    """Writes a table of many users a part at a time; a call that was stopped goes on where it was.

    Args:
      path: of the file, which is whole or not there.
      format: "parquet", "csv" or "jsonl".
      user_C: user numbers.
      make: the table of some of them.
      of: whatever the table depends on but the users; parts that were made of the same are kept.

    Returns:
      Number of rows.
    """
    digest = hashlib.sha256(json.dumps(of).encode() + user_C.tobytes()).hexdigest()[:16]
    folder = path.parent / f".parts-{digest}"
    parts = []
    for start in range(0, len(user_C), USERS):
        parts.append(folder / f"{start:012}.parquet")
        if not processes.any_process(parts[-1].exists()):
            table = make(user_C[start : start + USERS])
            write = table.write_parquet
            processes.in_first_process(
                lambda part=parts[-1], write=write: storage.write(part, write)
            )

    def join() -> int:
        with storage.local(parts) as paths:
            table = pl.scan_parquet(paths)
            storage.write(path, lambda scratch: WRITERS[format](table, scratch))
            n_rows = table.select(pl.len()).collect().item()
        for part in parts:
            part.unlink()
        if not storage.is_remote(folder):  # buckets have no folders
            folder.rmdir()
        return n_rows

    return processes.in_first_process(join) or 0
