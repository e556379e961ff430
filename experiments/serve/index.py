"""An index of nearest neighbours that retrieves candidates, which the model then ranks."""

import faiss
import numpy as np
import polars as pl

import hlrcml_jax as hlr

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

    def candidates(self, users: list, k: int = 1) -> dict[object, pl.Series]:
        """At least k items of each user that are close to it and not in its history."""
        n = max(self.n_candidates, k)
        table = self._recommender.user_factors(users)
        history = self._recommender.history(users)
        seen = dict(history.group_by("user_id").agg("item_id").iter_rows())
        most = n + max(map(len, seen.values()), default=0)
        most = min(most, len(self._items))
        self._graph.hnsw.efSearch = 2 * most
        user_NxF = np.pad(table["factors"].to_numpy(), ((0, 0), (0, 1)))
        _, place_NxK = self._graph.search(user_NxF, most)
        found = {}
        for user, place_K in zip(table["user_id"], place_NxK, strict=True):
            items = self._items.gather(place_K[place_K >= 0])
            had = pl.Series(seen.get(user, []), dtype=items.dtype)
            found[user] = items.filter(~items.is_in(had.implode()))[:n]
        return found

    def recommend(self, users: list, k: int = K) -> pl.DataFrame:
        """As `Recommender.recommend`, with candidates of the index alone."""
        nothing = self._recommender.recommend([], k)
        lists = [
            self._recommender.recommend(user, k, items=items)
            for user, items in self.candidates(users, k).items()
        ]
        return pl.concat([nothing, *lists])
