"""What interactions count in training: their rows, or their values."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import scipy.sparse

from hlrcml_jax.data.dataset import places
from hlrcml_jax.errors import UserError

LIMITS = 1e-9, 1e9  # of a row's weight


def sums(
    tables: Sequence[pl.DataFrame], weight: str, user_ids: pl.Series, item_ids: pl.Series
) -> scipy.sparse.csr_array | None:
    """The weight of each pair, the sum over its rows, as float32 CSR (U, I).

    Args:
      tables: columns `user`, `item` and, for their values, `value`; rows of other ids are left out.
      weight: "rows", "value", or "" for no weights.
      user_ids: by user index.
      item_ids: by item index.

    Raises:
      UserError: when there are no values, or some are not within `LIMITS`.
    """
    if not weight:
        return None
    cells = [
        pl.DataFrame(
            {
                "user": places(user_ids, table["user"].cast(user_ids.dtype)),
                "item": places(item_ids, table["item"].cast(item_ids.dtype)),
                "weight": _of_rows(table, weight),
            }
        )
        for table in tables
    ]
    user_E, item_E, weight_E = (column.to_numpy() for column in pl.concat(cells).drop_nulls())
    shape = (len(user_ids), len(item_ids))
    return scipy.sparse.coo_array((weight_E, (user_E, item_E)), shape).tocsr().astype(np.float32)


def _of_rows(table: pl.DataFrame, weight: str) -> pl.Series:
    if weight == "rows":
        return pl.repeat(1.0, len(table), eager=True)
    if "value" not in table.columns:
        raise UserError(
            "data.weight is 'value' but the file has no column of values; set data.columns.value, "
            "or data.weight=rows."
        )
    low, high = LIMITS
    wrong = table["value"].filter(~table["value"].is_between(low, high))
    if len(wrong):
        raise UserError(
            f"data.weight is 'value' and one value is {wrong[0]:g}; weights are from {low:g} to "
            f"{high:g}. A data.threshold above 0 leaves out rows without a weight."
        )
    return table["value"]
