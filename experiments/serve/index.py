"""An index of nearest neighbours that retrieves candidates, which the model then ranks.

python experiments/serve/index.py --workdir=runs/mine     # how much of the exact lists it holds
"""

import statistics
import time

import faiss
import numpy as np
import polars as pl
from absl import app, flags, logging

import hlrcml_jax as hlr

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained run.")
_CANDIDATES = flags.DEFINE_list("candidates", ["50", "100", "200", "500"], "Candidates to try.")
_USERS = flags.DEFINE_integer("users", 1000, "Most users to ask for, one by one.", lower_bound=1)
K = 10
LINKS = 32  # of an item in the graph of neighbours


class Index:
    """Retrieves a user's candidates by the vectors, in a graph of neighbours (HNSW).

    Graphs are good at distances and bad at inner products. With one more component, which makes all
    items equally long and is zero for users, the nearest are those of the largest inner product
    (Bachrach et al., RecSys 2014).

    Args:
      recommender: of a model with factors.
      n_candidates: items that are retrieved, beside as many as the user has already.
    """

    def __init__(self, recommender: hlr.Recommender, n_candidates: int):
        self._recommender, self.n_candidates = recommender, n_candidates
        self._items = recommender.items
        item_IxF = recommender.item_factors()["factors"].to_numpy()
        square_I = np.square(item_IxF).sum(axis=1)
        rest_Ix1 = np.sqrt(square_I.max() - square_I)[:, None]
        self._graph = faiss.IndexHNSWFlat(item_IxF.shape[1] + 1, LINKS)
        self._graph.add(np.concatenate([item_IxF, rest_Ix1], axis=1))

    def candidates(self, users: list) -> dict[object, pl.Series]:
        """Items of each user that are close to it and not in its history."""
        table = self._recommender.user_factors(users)
        history = self._recommender.history(users)
        seen = dict(history.group_by("user_id").agg("item_id").iter_rows())
        most = self.n_candidates + max(map(len, seen.values()), default=0)
        most = min(most, len(self._items))
        self._graph.hnsw.efSearch = 2 * most
        user_NxF = np.pad(table["factors"].to_numpy(), ((0, 0), (0, 1)))
        _, place_NxK = self._graph.search(user_NxF, most)
        found = {}
        for user, place_K in zip(table["user_id"], place_NxK, strict=True):
            items = self._items.gather(place_K[place_K >= 0])
            had = pl.Series(seen.get(user, []), dtype=items.dtype)
            found[user] = items.filter(~items.is_in(had.implode()))[: self.n_candidates]
        return found

    def recommend(self, users: list, k: int = K) -> pl.DataFrame:
        """As `Recommender.recommend`, with candidates of the index alone."""
        lists = [
            self._recommender.recommend(user, k, items=items)
            for user, items in self.candidates(users).items()
        ]
        return pl.concat(lists)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    recommender = hlr.load(_WORKDIR.value)
    users = recommender.users[: _USERS.value].to_list()
    exact = recommender.recommend(users, K).select("user_id", "item_id")
    rows = []
    for n in map(int, _CANDIDATES.value):
        index = Index(recommender, n)
        index.recommend(users[:1])
        lists, ms = [], []
        for user in users:
            started = time.perf_counter()
            lists.append(index.recommend([user]).select("user_id", "item_id"))
            ms.append(1e3 * (time.perf_counter() - started))
        held = len(pl.concat(lists).join(exact, on=["user_id", "item_id"])) / len(exact)
        by_vectors = recommender.recommend(users, K, candidates=n).select("user_id", "item_id")
        exactly = len(by_vectors.join(exact, on=["user_id", "item_id"])) / len(exact)
        rows.append(
            {
                "candidates": n,
                "held, %": 100 * held,
                "of the exact candidates, %": 100 * exactly,
                "ms a user": statistics.median(ms),
            }
        )
    with pl.Config(tbl_rows=-1, float_precision=2, tbl_hide_column_data_types=True):
        print(pl.DataFrame(rows))


if __name__ == "__main__":
    app.run(main)
