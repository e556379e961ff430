"""What each kind of split promises."""

import numpy as np
import polars as pl
import pytest

from hlrcml_jax.data import kcore as preprocess
from hlrcml_jax.data import splits
from hlrcml_jax.data.dataset import to_csr
from hlrcml_jax.data.splits import HISTORY, TEST, TRAIN, VALID
from hlrcml_jax.errors import UserError
from hlrcml_jax.registry import SPLITS


@pytest.fixture(scope="module")
def positives():
    rng = np.random.default_rng(0)
    rows = {"user": rng.integers(0, 80, 4000), "item": rng.integers(0, 200, 4000)}
    return preprocess.positives(pl.DataFrame(rows | {"time": rng.permutation(4000) * 1.0}))


def parts(positives, kind, valid=0.2, test=0.2, seed=3):
    return splits.split(positives, kind, valid, test, 0.8, seed)


@pytest.mark.parametrize("kind", [kind for kind in SPLITS if kind not in ("given", "last")])
def test_shares_and_seeds(positives, kind):
    part_E = parts(positives, kind)
    np.testing.assert_array_equal(part_E, parts(positives, kind))
    if kind in ("random", "user", "users"):
        assert (part_E != parts(positives, kind, seed=4)).any()
    of = positives.user_E if kind == "users" else np.arange(len(part_E))
    for part in (VALID, TEST):
        share = len(np.unique(of[part_E == part])) / len(np.unique(of))
        np.testing.assert_allclose(share, 0.2, atol=0.02)


@pytest.mark.parametrize("kind", ["user", "user_time"])
def test_each_user_is_divided(positives, kind):
    part_E = parts(positives, kind)
    for user in np.unique(positives.user_E):
        mine = part_E[positives.user_E == user]
        for part in (VALID, TEST):
            assert abs((mine == part).sum() - 0.2 * len(mine)) <= 1


def test_last_leaves_two_out(positives):
    part_E = parts(positives, "last")
    for user in np.unique(positives.user_E):
        mine = positives.user_E == user
        times, by = positives.time_E[mine], part_E[mine]
        assert (by == TEST).sum() == (by == VALID).sum() == 1
        assert times[by == TEST] == times.max()
        assert times[by == VALID] > times[by == TRAIN].max()


def test_time_does_not_look_ahead(positives):
    part_E, time_E = parts(positives, "time"), positives.time_E
    assert time_E[part_E == TRAIN].max() < time_E[part_E == VALID].min()
    assert time_E[part_E == VALID].max() < time_E[part_E == TEST].min()
    part_E = parts(positives, "user_time")
    for user in np.unique(positives.user_E):
        mine = positives.user_E == user
        assert time_E[mine & (part_E == TRAIN)].max() < time_E[mine & (part_E == TEST)].min()


def test_held_out_users_are_never_trained_on(positives):
    part_E, user_E = parts(positives, "users"), positives.user_E
    held_out = np.unique(user_E[(part_E == TEST) | (part_E == VALID)])
    assert not np.isin(user_E[part_E == TRAIN], held_out).any()
    assert set(np.unique(user_E[part_E == HISTORY])) == set(held_out)
    assert not set(user_E[part_E == TEST]) & set(user_E[part_E == VALID])
    known = (part_E[np.isin(user_E, held_out)] == HISTORY).mean()
    np.testing.assert_allclose(known, 0.8, atol=0.03)


def test_a_user_with_one_interaction_is_trained_on():
    lonely = preprocess.positives(pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [0.0, 1]}))
    for kind in ("user", "user_time", "last"):
        assert (parts(lonely, kind) == TRAIN).all()


@pytest.mark.parametrize("kind", ["last", "time", "user_time"])
def test_time_is_needed(kind):
    without = preprocess.positives(pl.DataFrame({"user": [1, 2], "item": [1, 2]}))
    with pytest.raises(UserError, match="needs a column of times"):
        parts(without, kind)


def test_thinner_training_is_part_of_denser_training(positives):
    shape = (len(positives.user_ids), len(positives.item_ids))
    whole = to_csr(positives.user_E, positives.item_E, shape)
    half, tenth = splits.thin(whole, 0.5, 3), splits.thin(whole, 0.1, 3)
    assert (half.nnz, tenth.nnz) == (round(0.5 * whole.nnz), round(0.1 * whole.nnz))
    assert (half.toarray() <= whole.toarray()).all()
    assert (tenth.toarray() <= half.toarray()).all()
    assert (splits.thin(whole, 0.5, 4).toarray() != half.toarray()).any()
    assert half.shape == shape
    assert half.has_sorted_indices
