"""A model in Python: trained, evaluated, and asked for recommendations and their reasons.

>>> import hlrcml_jax as hlr
>>> recommender = hlr.fit("ml-100k")  # doctest: +SKIP
>>> recommender.evaluate()  # doctest: +SKIP
>>> recommender.recommend([196, 186], k=10)  # doctest: +SKIP
>>> recommender.save("runs/mine")  # doctest: +SKIP
"""

import dataclasses
import numbers
import os
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from hlrcml_jax import arguments, config_files, explain, frames, settings, sources, storage
from hlrcml_jax.config import make_config
from hlrcml_jax.data.dataset import Lookup, count_items, to_csr
from hlrcml_jax.data.growth import with_test
from hlrcml_jax.data.prepare import read_more
from hlrcml_jax.errors import UserError, quoted, warn
from hlrcml_jax.keys import flatten, is_path, replaced
from hlrcml_jax.ranking import factors, few
from hlrcml_jax.ranking.lists import Ranker
from hlrcml_jax.registry import UNKNOWN
from hlrcml_jax.runs import build
from hlrcml_jax.runs.build import Best, best_checkpoint
from hlrcml_jax.runs.tested import on_test
from hlrcml_jax.runs.workdir import open_run

Ids = Any  # one id, or an iterable of ids
Interactions = Any  # what `sources.py` reads


@settings.own_settings()
def fit(
    interactions: Interactions,
    model: str | None = None,
    *,
    validation: float | Interactions = 0.1,
    test: float | Interactions = 0.2,
    workdir: str | pathlib.Path | None = None,
    on_epoch: Callable[[dict[str, float]], object] | None = None,
    **changes: Any,
) -> "Recommender":
    """Trains a model on interactions by the recipe of `configs/best.py`.

    The same call on the same workdir resumes a run that was stopped.

    Args:
      interactions: a polars or pandas frame, the path of a file, a scipy sparse matrix of users x
        items, or the name of a public data set, as "ml-100k". Columns with usual names (user_id,
        item, rating, …) are found; others are named, as data__columns__user="listener".
      model: one of `registry.MODELS`, or the dotted path of your own; None for the recipe's,
        residual HLR.
      validation: where training stops is chosen on it: a share of each user's interactions, or
        interactions.
      test: what `evaluate` predicts, likewise; 0 trains on it, too.
      workdir: of the run; None for a temporary folder, which goes when the recommender does.
      on_epoch: is called with the record of each epoch (loss, metrics on validation, examples/s)
        after its checkpoint is saved; what it raises ends training.
      **changes: other config keys (`configs/README.md`), with __ for dots, as train__epochs=20.

    Raises:
      UserError: for interactions that cannot be read, or a wrong argument.
    """
    given = {"interactions": interactions, "validation": validation, "test": test}
    shares = {name for name, value in given.items() if isinstance(value, numbers.Real)}
    files = {name: value for name, value in given.items() if name not in shares - {"interactions"}}
    name, values = "best", _changes(changes)
    if is_path(model):
        values["model.name"] = model
    elif model is not None:
        name += f":model={arguments.text('model', model)}"
    source = config_files.own(name) or name
    with sources.as_files(**files) as path_of:
        values = sources.settings(interactions, validation, test, path_of) | values
        return _trained(config_files.read(source, values), workdir, on_epoch)


def _trained(
    config: Any, workdir: str | pathlib.Path | None, on_epoch: Any = None
) -> "Recommender":
    """Trains in a workdir, or in a temporary one that goes when the recommender does."""
    from hlrcml_jax.runs import experiment  # not at the top: serving needs neither plots nor pages

    folder = tempfile.mkdtemp(prefix="hlrcml-") if workdir is None else workdir
    try:
        run = experiment.fit(config, folder, on_epoch)
        if run.config.parallel.tables == "sharded":
            run = open_run(replaced(run.config, {"parallel.tables": "replicated"}), folder)
        recommender = Recommender(best_checkpoint(run))
    except BaseException:
        if workdir is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if workdir is None:
        weakref.finalize(recommender, shutil.rmtree, folder, ignore_errors=True)
    return recommender


def _changes(changes: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in changes.items()}


@settings.own_settings()
def load(workdir: str | pathlib.Path, allow_code: bool = False, **changes: Any) -> "Recommender":
    """Loads the best checkpoint of a run.

    Args:
      workdir: of a run of `main` or `train_and_evaluate`.
      allow_code: import custom code named in the run's config (as `model.name=mine:Gated`); only
        if you trust it.
      **changes: config keys that may change, with __ for dots, as data__path="moved.csv".

    Raises:
      UserError: when there is no run, or no checkpoint.
    """
    workdir = arguments.path("workdir", workdir)
    allow_code = arguments.flag("allow_code", allow_code)
    values = _changes(changes)
    # However the run sharded its tables, here they are replicated.
    values["parallel.tables"] = "replicated"
    config = config_files.from_workdir(workdir, values, allow_code)
    return Recommender(best_checkpoint(open_run(config, workdir)))


@settings.own_settings()
def _reload(values: dict[str, Any], workdir: str) -> "Recommender":
    return Recommender(best_checkpoint(open_run(make_config(values), workdir)))


class Recommender:
    """Recommendations of a trained model, as polars frames with the ids of the data.

    It is pickled by its workdir and config, and loaded again from there.

    Args:
      best: the best checkpoint of a run whose tables are not sharded.
    """

    def __init__(self, best: Best):
        if not isinstance(best, Best):
            raise UserError(f"a Recommender is made by hlrcml_jax.load, not of {quoted(best)}.")
        run = best.run
        self._run, self._model, self._dataset = run, build.model_of(run), run.dataset
        self._trained, self._ready, self._params = best.params, best.ready, best.on_host
        self._scorer = build.make_serving_scorer(run)
        self._best = best
        self._places = {"user": Lookup(self.users), "item": Lookup(self.items)}

    def __reduce__(self):
        return _reload, (flatten(self._run.config), str(self._run.workdir))

    @settings.own_settings()
    def save(self, folder: str | pathlib.Path) -> None:
        """Copies the run to a new folder, from which `load` and all commands use it.

        Args:
          folder: of the copy; it does not exist yet.
        """
        target = storage.absolute(os.path.expanduser(arguments.path("folder", folder)))
        source = self._run.workdir
        storage.check_no_links(source)
        with storage.writing(target):
            if target.exists() or target.is_relative_to(source):
                raise UserError(f"{target}: it exists already, or is in the run; choose another.")
            storage.copy_folder(source, target)

    @settings.own_settings()
    def update(
        self,
        interactions: Interactions,
        workdir: str | pathlib.Path | None = None,
        on_epoch: Callable[[dict[str, float]], object] | None = None,
        **changes: Any,
    ) -> "Recommender":
        """Trains on with new interactions on top of the present ones, also of new users and items.

        It takes a fraction of the time of training anew: a few epochs from the present vectors,
        memory and moments. The test part of this run is trained on, too.

        Args:
          interactions: as in `fit`; those that are known already change nothing.
          workdir: of the new run; None for a temporary folder.
          on_epoch: as in `fit`.
          **changes: as in `fit`; the keys by which the data is read are those of this run.

        Returns:
          The new recommender; this one stays as it is.
        """
        with sources.as_files(interactions=interactions) as path_of:
            values = {"data.path": path_of["interactions"]} | _changes(changes)
            values = {"data.cache_dir": self._run.config.data.cache_dir} | values
            config = config_files.update_of(self._run.workdir, values, allow_code=True)
            return _trained(config, workdir, on_epoch)

    @settings.own_settings()
    def evaluate(self, interactions: Interactions = None) -> pl.DataFrame:
        """Metrics of the lists beside those of popularity.

        Args:
          interactions: to predict, as in `fit`, of users and items of the data and not among those
            trained on; None for the test part of the run.

        Returns:
          `model`, `metric`, `mean` over users (a fraction), its 95 % confidence interval `low` to
          `high`, `p` of a paired test against popularity, and `users`, their number.

        Raises:
          UserError: when there is nothing to predict.
        """
        run, best = self._run, self._best
        if interactions is not None:
            with sources.as_files(interactions=interactions) as path_of:
                table = read_more(run.config.data, path_of["interactions"])
            dataset, others = with_test(self._dataset, table)
            if others:
                warn(
                    f"{others:,} of {len(table):,} interactions are not predicted: they repeat, "
                    "are known, or of unknown users or items."
                )
            run = dataclasses.replace(run, dataset=dataset)
            best = dataclasses.replace(best, run=run)
        if not run.dataset.test.nnz:
            raise UserError(
                "there is nothing to predict: this run has no test part; give interactions."
                if interactions is None
                else "none of the interactions is a new one of users and items of the data."
            )
        tested, rows = on_test(best), []
        if not len(next(iter(tested.rows.values())).user_B):
            raise UserError("no user has evaluation.min_test_items interactions to predict.")
        for model, summary in tested.summaries.items():
            for metric, found in summary.items():
                values = {name: found.get(name) for name in ("mean", "low", "high", "p")}
                users = tested.rows[model].values.get(metric, np.empty(0))
                n_users = int(np.isfinite(users).sum()) or len(tested.rows[model].user_B)
                rows.append({"model": model, "metric": metric, **values, "users": n_users})
        return pl.DataFrame(rows, schema_overrides={"p": pl.Float64})

    @property
    def users(self) -> pl.Series:
        """Ids of the users in the data."""
        return self._dataset.user_ids

    @property
    def items(self) -> pl.Series:
        """Ids of the items in the catalogue."""
        return self._dataset.item_ids

    @settings.own_settings()
    def find(self, text: str) -> pl.DataFrame:
        """The items with a text in their title, or in their id if there are no titles.

        Args:
          text: case-insensitive.

        Returns:
          `item_id` and `title` (if the data has titles), the most popular item first.
        """
        titles, wanted = self._dataset.titles, arguments.text("text", text).lower()
        texts = (self.items if titles is None else titles).cast(pl.String).str.to_lowercase()
        item_R = np.flatnonzero(texts.str.contains(wanted, literal=True).fill_null(False))
        count_I = count_items(self._dataset.train)
        item_R = item_R[np.argsort(-count_I[item_R], kind="stable")]
        return pl.DataFrame(frames.item_columns(item_R, self._dataset))

    @settings.own_settings()
    def history(self, users: Ids = None) -> pl.DataFrame:
        """The items that users have in the data, all of which lists leave out.

        Args:
          users: as in `recommend`.

        Returns:
          `user_id`, `item_id` and `title` (if the data has titles), in the order of the users.
        """
        everyone = np.arange(len(self.users))
        user_C = everyone if users is None else self._indices(users, "user")
        known = self._dataset.seen()[user_C]
        columns = {"user_id": self.users.gather(np.repeat(user_C, np.diff(known.indptr)))}
        return pl.DataFrame(columns | frames.item_columns(known.indices, self._dataset))

    def warm_up(self, k: int = 10, candidates: int = 0) -> None:
        """Compiles the programs that answer for one user, or for at most eight.

        Without it the first calls take seconds. Later ones compile nothing, whoever the users are,
        for lists of the same length or of at most 16 items, with as many candidates or none, among
        at most 256 `items`, with reasons for at most 64; and for one new user of at most 512 items,
        but of TransCF.

        Args:
          k: items per user.
          candidates: as in `recommend`.
        """
        candidates = arguments.count("candidates", candidates, least=0)
        item, history = self.items[0], self.items[:2].to_list()
        for n in (1, few.ALL_TARGETS):
            self.recommend(self.users[:n], k)
            for halved in range((few.SOME // few.TARGETS).bit_length()):
                self.recommend(self.users[:n], k, items=self.items[: few.SOME >> halved])
            if candidates:
                self.recommend(self.users[:n], k, candidates=candidates)
        for n in {0, candidates}:
            self.recommend_new({0: history}, k, candidates=n)
        if self._model.spec.attends:
            for n in (1, 8, 64):
                self.explain(self.users[0], self.items[:n])
            self.explain(0, item, history=history)

    @settings.own_settings()
    def recommend(
        self,
        users: Ids = None,
        k: int = 10,
        filter_viewed: bool = True,
        items: Ids = None,
        candidates: int = 0,
        unknown: str = "error",
    ) -> pl.DataFrame:
        """The top k items of some users.

        Args:
          users: user ids; None for all users.
          k: items per user; fewer if the catalogue has fewer.
          filter_viewed: leave out what a user has in the data, in test, too.
          items: item ids to choose from; None for all.
          candidates: rank only so many items per user, those that are closest by their vectors
            alone; 0 ranks all, which is exact.
          unknown: what is done about ids that are not in the data: an "error"; "skip" leaves them
            out; with "popular" unknown users get the most popular items, after the other users and
            without scores, and unknown items are left out. Their numbers are printed.

        Returns:
          `user_id`, `item_id`, `title` (if the data has titles), `score` and `rank` (from 1).

        Raises:
          UserError: for an id that is not in the data, unless `unknown` says otherwise.
        """
        unknown = arguments.choice("unknown", unknown, UNKNOWN)
        strangers: list[str] = []
        if users is None:
            user_C = np.arange(len(self.users))
        else:
            user_C, strangers = self._known(users, "user", unknown)
        how = self._how(k, filter_viewed, items, candidates, unknown)
        rankings = self._scorer.rank(self._ready, user_C, *how)
        lists = frames.concat(rankings, self.users, self._dataset)
        if not strangers or unknown == "skip":
            return lists
        ids = frames.new_ids(strangers, self.users)
        popular = frames.popular(ids, self._dataset, how[0], how[2])
        return pl.concat([lists, popular])

    @settings.own_settings()
    def recommend_new(
        self,
        histories: Mapping[Any, Iterable[Any]] | pl.DataFrame,
        k: int = 10,
        filter_viewed: bool = True,
        items: Ids = None,
        candidates: int = 0,
    ) -> pl.DataFrame:
        """The top k items of new users, without retraining.

        Their embeddings are folded in: some steps on the training loss, everything else fixed (see
        `fold_in.py`). Relations use their histories directly.

        Args:
          histories: {user id: item ids}, or a frame of `user_id` and `item_id` (polars or pandas).
          k: as in `recommend`, like the other arguments and the result.
        """
        ids, scorer, ready = self._new_users(histories)
        how = self._how(k, filter_viewed, items, candidates)
        return frames.concat(scorer.rank(ready, np.arange(len(ids)), *how), ids, self._dataset)

    @settings.own_settings()
    def similar_items(self, items: Ids, k: int = 10) -> pl.DataFrame:
        """The k items most similar to each of some items, the item itself excluded.

        Args:
          items: item ids.
          k: similar items per item.

        Returns:
          `to_item_id`, `item_id`, `title` (if the data has titles), `score` (minus the squared
          distance; for inner-product models the cosine, or the weight) and `rank`.
        """
        k = arguments.count("k", k)
        item_T = self._indices(items, "item")
        similarity_TxI = self._model.item_similarity(np.asarray(self._trained["items"]), item_T)
        similarity_TxI[np.arange(len(item_T)), item_T] = -np.inf
        k = min(k, len(self.items) - 1)
        item_TxK = np.argsort(-similarity_TxI, axis=1, kind="stable")[:, :k]
        item_R = item_TxK.ravel()
        columns: dict[str, Any] = {"to_item_id": self.items.gather(np.repeat(item_T, k))}
        columns |= frames.item_columns(item_R, self._dataset)
        columns["score"] = np.take_along_axis(similarity_TxI, item_TxK, axis=1).ravel()
        columns["rank"] = np.tile(np.arange(1, k + 1), len(item_T))
        return pl.DataFrame(columns)

    @settings.own_settings()
    def scores(self, users: Ids, items: Ids) -> pl.DataFrame:
        """Scores of all pairs, including viewed items; for most models minus the squared distance.

        Args:
          users: user ids.
          items: item ids.

        Returns:
          `user_id`, `item_id` and `score`, in the order of the users, then of the items.
        """
        user_C, item_T = self._indices(users, "user"), self._indices(items, "item")
        if not len(item_T):
            return self.scores(users, self.items[0]).clear()
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

    @settings.own_settings()
    def user_factors(self, users: Ids = None) -> pl.DataFrame:
        """What an index of nearest neighbours takes as the queries of users.

        The inner products with `item_factors` order the items as `candidates` of `recommend` are
        chosen: by the vectors and biases, without relations.

        Args:
          users: as in `recommend`.

        Returns:
          `user_id` and `factors`, arrays of float32.

        Raises:
          UserError: for an unknown id, or a model whose scores are no inner products.
        """
        user_N = np.arange(len(self.users)) if users is None else self._indices(users, "user")
        factors_NxF = factors.of_users(self._model, self._params, self._scorer, user_N)
        return pl.DataFrame({"user_id": self.users.gather(user_N), "factors": factors_NxF})

    @settings.own_settings()
    def item_factors(self) -> pl.DataFrame:
        """What an index of nearest neighbours takes as items, see `user_factors`.

        Returns:
          `item_id` and `factors`, arrays of float32, of the whole catalogue.
        """
        factors_IxF = factors.of_items(self._model, self._params)[: len(self.items)]
        return pl.DataFrame({"item_id": self.items, "factors": factors_IxF})

    @settings.own_settings()
    def explain(
        self, user: Any, items: Ids, most: int = 0, history: Iterable[Any] | None = None
    ) -> pl.DataFrame:
        """The past items of a user with the largest attention shares for some items.

        Args:
          user: user id.
          items: item ids to explain.
          most: most reasons per item; 0 for all.
          history: item ids of a new user, who is not in the data.

        Returns:
          `user_id`, `item_id`, `title`, `reason_item_id`, `reason_title` (titles if the data has
          them) and the shares of `explain.Reasons`, in descending order of share.

        Raises:
          UserError: for an unknown id, or a model without attention.
        """
        most = arguments.count("most", most, least=0)
        if history is None:
            ids, scorer, params = self.users, self._scorer, self._params
            user_N = self._indices(user, "user")
        else:
            ids, scorer, ready = self._new_users(arguments.one_history(user, history))
            params, user_N = build.on_host(self._run, ready), np.zeros(1, int)
        item_N = self._indices(items, "item")
        pairs = np.repeat(user_N, len(item_N)), np.tile(item_N, len(user_N))
        if not len(pairs[0]):
            return self.explain(self.users[0], self.items[0], 1).clear()
        why = explain.reasons(self._model, params, scorer, *pairs, most)
        columns = {"user_id": ids.gather(pairs[0]), **frames.item_columns(pairs[1], self._dataset)}
        table = pl.DataFrame(columns).with_row_index("pair")
        return table.join(why.frame(self._dataset), "pair", maintain_order="right").drop("pair")

    def _known(self, wanted: Ids, kind: str, unknown: str) -> tuple[np.ndarray, list[str]]:
        """(indices of the known of some ids, the others), if they may be unknown."""
        if unknown == "error":
            return self._indices(wanted, kind), []
        index, texts = frames.find(self._places[kind], arguments.ids(f"{kind}s", wanted))
        others = frames.missing(index, texts)
        if others:
            warn(f"{len(others):,} of {len(texts):,} {kind}s are not in the data.")
        return index[index >= 0], others

    def _indices(self, wanted: Ids, kind: str) -> np.ndarray:
        return frames.indices(self._places[kind], arguments.ids(f"{kind}s", wanted), kind)

    def _how(
        self, k, filter_viewed, items, candidates, unknown="error"
    ) -> tuple[int, bool, np.ndarray | None, int]:
        """Arguments of `Ranker.rank`, from those of `recommend`."""
        k, hide_known = arguments.count("k", k), arguments.flag("filter_viewed", filter_viewed)
        candidates = arguments.count("candidates", candidates, least=0)
        only_I = None
        if items is not None:
            only_I = np.zeros(len(self.items), bool)
            only_I[self._known(items, "item", unknown)[0]] = True
        return k, hide_known, only_I, candidates

    def _new_users(self, histories) -> tuple[pl.Series, Ranker, dict[str, Any]]:
        """(ids, scorer with their histories, parameters with their embeddings on the devices)."""
        ids, row_R, item_R = arguments.histories(histories)
        index_R = frames.indices(self._places["item"], item_R, "item")
        known = to_csr(np.array(row_R, np.int64), index_R, (len(ids), len(self.items)))
        scorer = build.make_new_scorer(self._run, known, self._scorer.rarity_I)
        params = build.with_new_users(self._run, self._trained, known)
        return pl.Series("user_id", ids, dtype=None if ids else pl.String), scorer, params
