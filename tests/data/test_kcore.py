"""Thresholds, duplicates, the n-core and contiguous ids."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlrcml_jax.data import kcore as preprocess
from hlrcml_jax.data.columns import above
from hlrcml_jax.errors import UserError


def table(rows):
    return pl.DataFrame(rows, schema=["user", "item", "value", "time"], orient="row")


def test_threshold_duplicates_and_ids():
    rows = [
        (30, 7, 4.0, 9.0),
        (30, 7, 5.0, 3.0),  # earlier: this one counts
        (30, 7, 1.0, 1.0),  # below the threshold: it does not
        (10, 9, 4.0, 2.0),
        (10, 8, 3.9, 2.0),
    ]
    found = preprocess.positives(above(table(rows), 4.0))
    assert found.user_ids.to_list() == [10, 30]
    assert found.item_ids.to_list() == [7, 9]
    np.testing.assert_array_equal(found.user_E, [0, 1])
    np.testing.assert_array_equal(found.item_E, [1, 0])
    np.testing.assert_array_equal(found.time_E, [2.0, 3.0])


def test_the_order_of_the_file_does_not_matter():
    rows = [(u, i, 1.0, float(u * i)) for u in range(9) for i in range(7) if (u + i) % 3]
    a, b = (preprocess.positives(table(r)) for r in (rows, rows[::-1]))
    for field in ("user_E", "item_E", "time_E"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def slow_core(pairs, min_user, min_item):
    pairs = set(pairs)
    while True:
        kept = {
            (u, i)
            for u, i in pairs
            if sum(p[0] == u for p in pairs) >= min_user
            and sum(p[1] == i for p in pairs) >= min_item
        }
        if kept == pairs:
            return kept
        pairs = kept


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_the_core_is_the_fixpoint(pairs, min_user, min_item):
    pairs = sorted(pairs)
    user_E, item_E = np.array(pairs).T
    kept = {pairs[place] for place in preprocess.core(user_E, item_E, min_user, min_item)}
    assert kept == slow_core(pairs, min_user, min_item)


def test_nothing_left_is_a_mistake():
    with pytest.raises(UserError, match=r"no interaction is left.*min_per_user=5"):
        preprocess.positives(table([(1, 1, 1.0, 1.0)]), min_per_user=5)
    with pytest.raises(UserError, match="no value reaches data.threshold=9"):
        above(table([(1, 1, 1.0, 1.0)]), 9)
    with pytest.raises(UserError, match="no column of values"):
        above(pl.DataFrame({"user": [1], "item": [1]}), 1)


@pytest.mark.parametrize("dtype", [pl.Int64, pl.String, pl.Categorical])
def test_indices_follow_the_order_of_ids(dtype):
    pl.Series(["zz", "1"], dtype=pl.Categorical)  # categories that no one has asked for
    ids = pl.Series(["30", "7", "30", "100", "9"]).cast(dtype)
    distinct, indices = preprocess.index_ids(ids)
    assert distinct.is_sorted()
    assert distinct.gather(indices).cast(pl.String).to_list() == ids.cast(pl.String).to_list()
    assert distinct.n_unique() == len(distinct) == 4
