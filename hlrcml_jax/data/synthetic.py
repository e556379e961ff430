"""A seeded generator of interactions with planted item-item relations, of any size."""

import numpy as np
import polars as pl

N_RELATED = 4


def generate(
    n_users: int, n_items: int, n_interactions: int, seed: int = 0, follow: float = 0.6
) -> pl.DataFrame:
    """Users who walk through clusters of items along planted relations.

    Items are cut into clusters of about 50. Within a cluster each item leads to N_RELATED
    others. A user favours three clusters; each next item follows a relation of the item before
    with probability `follow`, and is otherwise drawn from the favoured clusters, the first items
    of a cluster being the more popular ones. Activity is long-tailed over users.

    Args:
      n_users: number of users.
      n_items: number of items, at least 10.
      n_interactions: steps of all walks; the table has somewhat fewer distinct pairs.
      seed: of all draws.
      follow: probability of following a relation.

    Returns:
      Distinct pairs in columns `user`, `item` (Int64) and `time` (the step of the user's walk).
    """
    rng = np.random.default_rng(seed)
    related_IxR = related_items(n_items, rng)
    size = _cluster_size(n_items)
    activity_U = rng.pareto(1.5, n_users) + 0.5
    share_U = activity_U / activity_U.sum()
    length_U = np.minimum(np.maximum(1, np.round(share_U * n_interactions)), n_items)
    order_U = np.argsort(-length_U)
    length_U = length_U[order_U].astype(np.int64)
    favoured_Ux3 = rng.integers(0, -(-n_items // size), (n_users, 3))

    users, items, times = [], [], []
    item_A = np.empty(0, np.int64)
    for step in range(length_U[0]):
        # Users are sorted by length, so the active ones come first.
        active = int(np.searchsorted(-length_U, -step))
        cluster_A = favoured_Ux3[np.arange(active), rng.integers(0, 3, active)]
        offset_A = np.floor(size * rng.random(active) ** 2).astype(np.int64)
        fresh_A = np.minimum(cluster_A * size + offset_A, n_items - 1)
        if step:
            followed_A = related_IxR[item_A[:active], rng.integers(0, N_RELATED, active)]
            fresh_A = np.where(rng.random(active) < follow, followed_A, fresh_A)
        item_A = fresh_A
        users.append(order_U[:active])
        items.append(item_A)
        times.append(np.full(active, step))
    table = pl.DataFrame(
        {
            "user": np.concatenate(users),
            "item": np.concatenate(items),
            "time": np.concatenate(times).astype(np.float64),
        }
    )
    return table.unique(["user", "item"], keep="first", maintain_order=True)


def related_items(n_items: int, rng: np.random.Generator) -> np.ndarray:
    """The planted relations: N_RELATED items of the same cluster for each item, (I, R)."""
    size = _cluster_size(n_items)
    item_I = np.arange(n_items)
    start_I = item_I // size * size
    width_I = np.minimum(size, n_items - start_I)
    step_R = rng.choice(np.arange(1, size), N_RELATED, replace=False)
    return start_I[:, None] + (item_I[:, None] - start_I[:, None] + step_R) % width_I[:, None]


def _cluster_size(n_items: int) -> int:
    return min(50, n_items)
