"""How far a mean over users can be trusted: confidence intervals and paired tests."""

import numpy as np
import scipy.stats

RESAMPLES = 1000
MOST_USERS = 50_000  # with more, the bootstrap takes seconds, and the normal interval is the same


def of_means(value_BxN: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): 95 % confidence intervals of the means of columns, (N,) each.

    Percentiles of the means of 1,000 bootstrap samples of users (Efron, 1979); of many users, the
    mean and 1.96 standard errors.

    Args:
      value_BxN: of B users; NaN where a user has no value.
      seed: of the samples.
    """
    n_users = len(value_BxN)
    if n_users > MOST_USERS:
        has_N = np.isfinite(value_BxN).sum(axis=0)
        half_N = 1.96 * np.nanstd(value_BxN, axis=0) / np.sqrt(has_N)
        mean_N = np.nanmean(value_BxN, axis=0)
        return mean_N - half_N, mean_N + half_N
    rng = np.random.default_rng(seed)
    has_BxN = np.isfinite(value_BxN)
    filled_BxN = np.where(has_BxN, value_BxN, 0.0)
    has_BxN = has_BxN.astype(float)  # products of booleans are slow
    mean_RxN = np.full((RESAMPLES, value_BxN.shape[1]), np.nan)
    for mean_N in mean_RxN:
        user_B = rng.integers(0, n_users, n_users)
        count_B = np.bincount(user_B, minlength=n_users).astype(float)
        total_N = count_B @ has_BxN
        np.divide(count_B @ filled_BxN, total_N, out=mean_N, where=total_N > 0)
    low_N, high_N = np.nanpercentile(mean_RxN, (2.5, 97.5), axis=0)
    return low_N, high_N


def p_value(value_B: np.ndarray, other_B: np.ndarray) -> float:
    """p of a paired t-test over the users that have both values; 1 where all differ by the same."""
    difference_N = value_B.astype(float) - other_B.astype(float)
    difference_N = difference_N[np.isfinite(difference_N)]
    if len(difference_N) < 2 or np.ptp(difference_N) == 0.0:
        return 1.0
    return float(scipy.stats.ttest_1samp(difference_N, 0.0).pvalue)
