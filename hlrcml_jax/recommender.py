"""A trained model, to be used from Python: recommendations, reasons, new users.

>>> import hlrcml_jax as hlr
>>> recommender = hlr.load("runs/quickstart")  # doctest: +SKIP
>>> recommender.recommend([196, 186], k=10)  # doctest: +SKIP
"""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from hlrcml_jax import config_files, explain, frames
from hlrcml_jax.data.dataset import count_items, to_csr
from hlrcml_jax.ranking.lists import Ranker
from hlrcml_jax.runs import build
from hlrcml_jax.runs.build import Best, best_checkpoint
from hlrcml_jax.runs.workdir import open_run

Ids = Any  # one id, or several in whatever can be iterated


def load(workdir: str | pathlib.Path, allow_code: bool = False, **changes: Any) -> "Recommender":
    """The best checkpoint of a run.

    Args:
      workdir: of a run that `main` or `train_and_evaluate` made.
      allow_code: import the code that the run's config names (as `model.name=mine:Gated`), which
        you trust.
      **changes: config keys that may change, with __ for dots, as data__path="moved.csv".

    Raises:
      UserError: when there is no run, no checkpoint, or the data cannot be found.
    """
    values = {name.replace("__", "."): value for name, value in changes.items()}
    # Tables lie as they are on the devices of one run, and whole here.
    values["parallel.tables"] = "replicated"
    run = open_run(config_files.from_workdir(workdir, values, allow_code), workdir)
    return Recommender(best_checkpoint(run))


class Recommender:
    """Recommends what a model has learnt; ids are those of the data, in frames of polars.

    Args:
      best: the best checkpoint of a run whose tables are not divided.
    """

    def __init__(self, best: Best):
        run = best.run
        self._run, self._model, self._dataset = run, build.model_of(run), run.dataset
        self._trained, self._ready, self._params = best.params, best.ready, best.on_host
        self._scorer = build.make_scorer(run, "test")

    @property
    def users(self) -> pl.Series:
        """Ids of the users that the data has."""
        return self._dataset.user_ids

    @property
    def items(self) -> pl.Series:
        """Ids of the items that can be recommended."""
        return self._dataset.item_ids

    def find(self, text: str) -> pl.DataFrame:
        """The items that have a text in their title, or in their id where there are no titles.

        Args:
          text: capitals do not count.

        Returns:
          `item_id` and `title` (where the data has titles), the most popular item first.
        """
        titles, wanted = self._dataset.titles, text.lower()
        texts = (self.items if titles is None else titles).cast(pl.String).str.to_lowercase()
        item_R = np.flatnonzero(texts.str.contains(wanted, literal=True).fill_null(False))
        count_I = count_items(self._dataset.train)
        item_R = item_R[np.argsort(-count_I[item_R], kind="stable")]
        return pl.DataFrame(frames.named(item_R, self._dataset))

    def recommend(
        self,
        users: Ids = None,
        k: int = 10,
        filter_viewed: bool = True,
        items: Ids = None,
    ) -> pl.DataFrame:
        """The k best items of some users.

        Args:
          users: ids; all users of the data, if it is not given.
          k: items for each; fewer where there are not so many.
          filter_viewed: leave out what a user has in training and validation.
          items: ids, of which alone to recommend.

        Returns:
          `user_id`, `item_id`, `title` (where the data has titles), `score` and `rank` (from 1).

        Raises:
          UserError: an id that the data does not have.
        """
        user_C = np.arange(len(self.users)) if users is None else self._numbers(users, "user")
        return self._rank(self._scorer, self._ready, user_C, self.users, k, filter_viewed, items)

    def recommend_new(
        self,
        histories: Mapping[Any, Iterable[Any]] | pl.DataFrame,
        k: int = 10,
        filter_viewed: bool = True,
        items: Ids = None,
    ) -> pl.DataFrame:
        """The k best items of users that the model has never seen, without training it again.

        Their vectors are found by some steps on the training loss with everything else fixed (see
        `fold_in.py`); relations use their items at once.

        Args:
          histories: {user id: its item ids}, or a frame of `user_id` and `item_id` (polars or
            pandas).
          k: as in `recommend`, like the other arguments and the result.
        """
        ids, scorer, ready = self._new_users(histories)
        user_C = np.arange(len(ids))
        return self._rank(scorer, ready, user_C, ids, k, filter_viewed, items)

    def similar_items(self, items: Ids, k: int = 10) -> pl.DataFrame:
        """The k items that are most like each of some items, itself not among them.

        Args:
          items: ids.
          k: items for each.

        Returns:
          `to_item_id`, `item_id`, `title` (where the data has titles), `score` (minus the squared
          distance; of models that score by inner products the cosine, or the weight) and `rank`.
        """
        item_T = self._numbers(items, "item")
        similarity_TxI = self._model.item_similarity(np.asarray(self._trained["items"]), item_T)
        similarity_TxI[np.arange(len(item_T)), item_T] = -np.inf
        k = min(k, len(self.items) - 1)
        item_TxK = np.argsort(-similarity_TxI, axis=1, kind="stable")[:, :k]
        item_R = item_TxK.ravel()
        columns: dict[str, Any] = {"to_item_id": self.items.gather(np.repeat(item_T, k))}
        columns |= frames.named(item_R, self._dataset)
        columns["score"] = np.take_along_axis(similarity_TxI, item_TxK, axis=1).ravel()
        columns["rank"] = np.tile(np.arange(1, k + 1), len(item_T))
        return pl.DataFrame(columns)

    def scores(self, users: Ids, items: Ids) -> pl.DataFrame:
        """The scores of all pairs, known ones too: minus the squared distances, of most models.

        Args:
          users: ids.
          items: ids.

        Returns:
          `user_id`, `item_id` and `score`, by the order of the users and then of the items.
        """
        user_C, item_T = self._numbers(users, "user"), self._numbers(items, "item")
        distinct_T, column_T = np.unique(item_T, return_inverse=True)
        only_I = np.zeros(len(self.items), bool)
        only_I[distinct_T] = True
        rankings = self._scorer.rank(self._ready, user_C, len(distinct_T), False, only_I)
        parts = [np.zeros((0, len(distinct_T)), np.float32)]
        for ranking in rankings:
            column_CxK = np.searchsorted(distinct_T, ranking.item_CxK)
            parts.append(np.empty_like(ranking.score_CxK))
            np.put_along_axis(parts[-1], column_CxK, ranking.score_CxK, axis=1)
        pairs = {"user_id": self.users.gather(np.repeat(user_C, len(item_T)))}
        pairs["item_id"] = self.items.gather(np.tile(item_T, len(user_C)))
        pairs["score"] = pl.Series(np.concatenate(parts)[:, column_T].ravel())
        return pl.DataFrame(pairs)

    def explain(
        self, user: Any, items: Ids, most: int = 0, history: Iterable[Any] | None = None
    ) -> pl.DataFrame:
        """The past items of a user that speak for some items.

        Args:
          user: id.
          items: ids.
          most: reasons for each item; 0 for all.
          history: item ids of a user that the data does not have.

        Returns:
          `user_id`, `item_id`, `title`, `reason_item_id`, `reason_title`, and the shares of
          `explain.Reasons`; the largest share first. Titles are there where the data has some.

        Raises:
          UserError: an unknown id, or a model that attends to nothing.
        """
        if history is None:
            ids, scorer, params = self.users, self._scorer, self._params
            user_N = self._numbers(user, "user")
        else:
            ids, scorer, ready = self._new_users({user: history})
            params, user_N = build.on_host(self._run, ready), np.zeros(1, int)
        item_N = self._numbers(items, "item")
        pairs = np.repeat(user_N, len(item_N)), np.tile(item_N, len(user_N))
        why = explain.reasons(self._model, params, scorer, *pairs, most)
        columns = {"user_id": ids.gather(pairs[0]), **frames.named(pairs[1], self._dataset)}
        table = pl.DataFrame(columns).with_row_index("pair")
        return table.join(why.frame(self._dataset), "pair", maintain_order="right").drop("pair")

    def _numbers(self, wanted: Ids, what: str) -> np.ndarray:
        single = isinstance(wanted, str | bytes) or not isinstance(wanted, Iterable)
        ids = {"user": self.users, "item": self.items}[what]
        return frames.numbers(ids, [wanted] if single else wanted, what)

    def _rank(self, scorer, ready, user_C, ids, k, filter_viewed, items) -> pl.DataFrame:
        only_I = None
        if items is not None:
            only_I = np.zeros(len(self.items), bool)
            only_I[self._numbers(items, "item")] = True
        rankings = scorer.rank(ready, user_C, k, filter_viewed, only_I)
        return frames.of_rankings(rankings, ids, self._dataset)

    def _new_users(self, histories) -> tuple[pl.Series, Ranker, dict[str, Any]]:
        """(ids, a scorer that knows their items, parameters with their vectors on the devices)."""
        if isinstance(histories, Mapping):
            pairs = [(user, item) for user, items in histories.items() for item in items]
            user_R, item_R = zip(*pairs, strict=True) if pairs else ((), ())
            ids = list(histories)
        else:
            user_R, item_R = (list(histories[name]) for name in ("user_id", "item_id"))
            ids = list(dict.fromkeys(user_R))
        row = {user: number for number, user in enumerate(ids)}
        row_R = np.array([row[user] for user in user_R], np.int64)
        shape = (len(ids), len(self.items))
        known = to_csr(row_R, frames.numbers(self.items, item_R, "item"), shape)
        scorer = build.make_scorer(self._run, known, self._scorer.rarity_I)
        params = build.with_new_users(self._run, self._trained, known)
        return pl.Series("user_id", ids, strict=False), scorer, params
