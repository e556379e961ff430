"""Intervals and tests of means over users, against scipy's."""

import numpy as np
import pytest
import scipy.stats

from hlrcml_jax.ranking import intervals


def values(n_users, seed=0):
    """Two metrics: one that every user has, and one that a third of them lacks."""
    value_BxN = np.random.default_rng(seed).beta(0.5, 2.0, (n_users, 2))
    value_BxN[::3, 1] = np.nan
    return value_BxN


@pytest.mark.parametrize("most", [100_000, 10], ids=["bootstrap", "normal"])
def test_intervals_are_those_of_scipy(most, monkeypatch):
    monkeypatch.setattr(intervals, "MOST_USERS", most)
    value_BxN = values(400)
    found = np.array(intervals.of_means(value_BxN, seed=1))
    for low_high, value_B in zip(found.T, value_BxN.T, strict=True):
        known_N = value_B[np.isfinite(value_B)]
        expected = scipy.stats.bootstrap((known_N,), np.mean, rng=2, method="percentile")
        width = expected.confidence_interval.high - expected.confidence_interval.low
        np.testing.assert_allclose(low_high, expected.confidence_interval, atol=0.1 * width)


def test_intervals_hold_the_mean_as_often_as_they_say():
    expected, held = 0.2, 0
    for seed in range(200):
        low_N, high_N = intervals.of_means(values(100, seed)[:, :1], seed)
        held += low_N[0] <= expected <= high_N[0]
    assert 0.9 <= held / 200 <= 0.99


def test_p_values_are_those_of_scipy():
    value_BxN = values(50)
    by_scipy = scipy.stats.ttest_rel(*value_BxN.T, nan_policy="omit").pvalue
    assert intervals.p_value(*value_BxN.T) == pytest.approx(by_scipy)
    assert intervals.p_value(value_BxN[:, 0], value_BxN[:, 0]) == 1.0
    for same in (np.ones(1), np.ones(2, bool)):  # there is nothing to compare, or no variance
        assert intervals.p_value(same, np.zeros(len(same))) == 1.0


@pytest.mark.parametrize("most", [100_000, 1], ids=["bootstrap", "normal"])
def test_a_metric_of_one_user_has_an_interval(most, monkeypatch):
    monkeypatch.setattr(intervals, "MOST_USERS", most)
    value_BxN = np.full((5, 1), np.nan)
    value_BxN[2] = 0.5
    assert intervals.of_means(value_BxN, seed=0) == (0.5, 0.5)
