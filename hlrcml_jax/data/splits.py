"""Splits of interactions into training, validation and test."""

import numpy as np
import scipy.sparse

from hlrcml_jax.data.dataset import to_csr
from hlrcml_jax.data.kcore import Positives
from hlrcml_jax.errors import UserError

TRAIN, VALID, TEST, HISTORY = range(4)

BY_TIME = ("last", "time", "user_time")


def split(
    positives: Positives, kind: str, valid: float, test: float, history: float, seed: int
) -> np.ndarray:
    """Assigns each interaction to a part.

    Args:
      positives: the interactions, E of them.
      kind: "random" over interactions (the paper's); "user", random within each user; "last",
        each user's last interaction to test and the one before to validation; "time", the
        latest of all to test; "user_time", the latest of each user; "users" holds out whole
        users, with a share of their interactions as history.
      valid: share of all interactions (or users) for validation.
      test: share of all interactions (or users) for test.
      history: share of a held-out user's interactions in its history.
      seed: of the random kinds.

    Returns:
      TRAIN, VALID, TEST or HISTORY for each interaction, (E,) int8. HISTORY, only with "users",
      is known at evaluation but never trained on.
    """
    rng = np.random.default_rng(seed)
    user_E = positives.user_E
    n = len(user_E)
    if kind == "random":
        return _by_share((rng.permutation(n) + 0.5) / n, valid, test)
    if kind == "time":
        rank_E = np.empty(n)
        rank_E[np.argsort(_times(positives, kind), kind="stable")] = np.arange(n)
        return _by_share((rank_E + 0.5) / n, valid, test)
    if kind == "last":
        rank_E, count_E = _rank_within_users(user_E, _times(positives, kind))
        part_E = np.full(n, TRAIN, np.int8)
        part_E[(rank_E == count_E - 1) & (count_E >= 2)] = TEST
        part_E[(rank_E == count_E - 2) & (count_E >= 3)] = VALID
        return part_E
    key_E = _times(positives, kind) if kind == "user_time" else rng.random(n)
    rank_E, count_E = _rank_within_users(user_E, key_E)
    quantile_E = (rank_E + 0.5) / count_E
    if kind != "users":
        return _by_share(quantile_E, valid, test)
    n_users = len(positives.user_ids)
    part_U = _by_share((rng.permutation(n_users) + 0.5) / n_users, valid, test)
    held_out_E = part_U[user_E] != TRAIN
    return np.where(held_out_E & (quantile_E < history), HISTORY, part_U[user_E]).astype(np.int8)


def cut_validation(
    train: scipy.sparse.csr_array, share: float, seed: int
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """(training, validation) from the training part of a given split.

    Args:
      train: boolean CSR (U, I).
      share: of each user's interactions in validation, rounded down, but at least one of a user
        who has two; 0 for no validation.
      seed: of the draw.
    """
    cells = train.tocoo()
    user_E, item_E = cells.coords
    rank_E, count_E = _rank_within_users(user_E, np.random.default_rng(seed).random(cells.nnz))
    n_valid_E = np.minimum(np.maximum((share * count_E).astype(int), share > 0), count_E - 1)
    is_valid_E = rank_E < n_valid_E
    kept, cut = (
        to_csr(user_E[chosen], item_E[chosen], train.shape) for chosen in (~is_valid_E, is_valid_E)
    )
    return kept, cut


def _times(positives: Positives, kind: str) -> np.ndarray:
    """Time of each interaction, (E,)."""
    if positives.time_E is None:
        raise UserError(
            f"data.split.kind={kind!r} needs a column of times; set data.columns.time, or choose "
            "'random' or 'user'."
        )
    return positives.time_E


def thin(matrix: scipy.sparse.csr_array, share: float, seed: int) -> scipy.sparse.csr_array:
    """A random share of the interactions; a smaller share is a subset of a larger one."""
    cells = matrix.tocoo()
    kept = np.random.default_rng(seed).permutation(cells.nnz)[: round(share * cells.nnz)]
    row_E, column_E = cells.coords
    return to_csr(row_E[kept], column_E[kept], matrix.shape)


def _by_share(quantile_N: np.ndarray, valid: float, test: float) -> np.ndarray:
    """Cuts quantiles in (0, 1) into training, then validation, then test."""
    part_N = np.full(len(quantile_N), TRAIN, np.int8)
    part_N[quantile_N >= 1.0 - test - valid] = VALID
    part_N[quantile_N >= 1.0 - test] = TEST
    return part_N


def _rank_within_users(user_E: np.ndarray, key_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rank of each interaction by key within its user, interactions of its user), (E,) each."""
    order_E = np.lexsort((key_E, user_E))
    count_U = np.bincount(user_E)
    first_U = np.cumsum(count_U) - count_U
    rank_E = np.empty(len(user_E), np.int64)
    rank_E[order_E] = np.arange(len(user_E)) - first_U[user_E[order_E]]
    return rank_E, count_U[user_E]
