"""Lists of many users, with reasons or without, as files in the workdir.

Users of the data are ranked with what was trained, others by the history that a file has of them;
who has neither gets the most popular items.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import polars as pl
import scipy.sparse

from hlrcml_jax import explain, frames, settings
from hlrcml_jax.data.dataset import Dataset, Lookup, places, to_csr
from hlrcml_jax.data.files import expanded
from hlrcml_jax.data.prepare import read_more
from hlrcml_jax.errors import UserError, quoted, warn
from hlrcml_jax.ranking.lists import Ranker
from hlrcml_jax.reporting import console as report
from hlrcml_jax.runs import build
from hlrcml_jax.runs.build import Best
from hlrcml_jax.runs.run import Run

MakeTable = Callable[[np.ndarray], pl.DataFrame]  # of user indices


@dataclasses.dataclass(frozen=True)
class Users:
    """Users who are ranked with the same parameters.

    Attributes:
      basis: of their lists: "trained", or "history" alone.
      ids: by user index.
      scorer: with their histories.
      ready: parameters on the devices.
    """

    basis: str
    ids: pl.Series
    scorer: Ranker
    ready: dict[str, Any]


Group = tuple[Users, np.ndarray]  # some users, and the indices of those who get a list


def of_data(best: Best) -> Users:
    """The users of the data."""
    run = best.run
    return Users("trained", run.dataset.user_ids, build.make_serving_scorer(run), best.ready)


def _of_histories(best: Best, ids: pl.Series, histories: scipy.sparse.csr_array) -> Users:
    """Users with some histories, CSR (N, I), without retraining."""
    ready = build.with_new_users(best.run, best.params, histories)
    return Users("history", ids, build.make_new_scorer(best.run, histories), ready)


def tables(best: Best, users: Users, k: int, reasons: int | None = None, **how: Any) -> MakeTable:
    """A function from user indices to a frame of their top k items.

    Args:
      best: the checkpoint.
      users: who may be ranked.
      k: length of the lists.
      reasons: most reasons of each item, 0 for all; None for lists without.
      **how: arguments of `Ranker.rank`.
    """
    run = best.run

    def ranked(user_C):
        rankings = list(users.scorer.rank(users.ready, user_C, k, **how))
        return rankings, frames.concat(rankings, users.ids, run.dataset)

    if reasons is None:
        return lambda user_C: ranked(user_C)[1]
    model, params = build.model_of(run), build.on_host(run, users.ready)

    def explained(user_C):
        rankings, lists = ranked(user_C)
        pairs = frames.pairs(rankings)
        why = explain.reasons(model, params, users.scorer, *pairs, reasons).frame(run.dataset)
        lists = lists.with_row_index("pair")
        return lists.join(why, "pair", "left", maintain_order="left_right").drop("pair")

    return explained


@settings.own_settings()
def write_recommendations(best: Best) -> pathlib.Path:
    """Writes the top k of `recommend.users` to `recommendations.*` in the workdir."""
    return _write(best, "recommendations", None)[0]


@settings.own_settings()
def write_reasons(best: Best) -> pathlib.Path:
    """Writes the top k of `recommend.users` with reasons to `reasons.*` in the workdir."""
    path, make = _write(best, "reasons", best.run.config.recommend.reasons)
    first = make(np.zeros(1, int))
    if len(first):
        title = f"Recommendations for user {first['user_id'][0]}"
        report.print_recommendations(title, first)
    return path


def _write(best: Best, name: str, reasons: int | None) -> tuple[pathlib.Path, MakeTable]:
    """(path of the file, function from users' indices in it to their lists)."""
    run, options = best.run, best.run.config.recommend
    if reasons is not None:
        explain.check_attends(build.model_of(run))
    groups, unknown_ids = _audience(best)
    how = {"only_I": _only(run.dataset, options.only_items), "candidates": options.candidates}
    makers = [tables(best, users, options.k, reasons, **how) for users, _ in groups]
    is_marked = bool(options.histories) or options.unknown == "popular"
    ends = np.cumsum([0, *(len(user_C) for _, user_C in groups)])
    n = int(ends[-1]) + len(unknown_ids)
    if not n:
        raise UserError("none of recommend.users is in the data.")

    def make(index_N: np.ndarray) -> pl.DataFrame:
        parts = []
        for group, maker, start, end in zip(groups, makers, ends, ends[1:], strict=False):
            (users, user_C), own_N = group, index_N[(index_N >= start) & (index_N < end)]
            if len(own_N):
                lists = maker(user_C[own_N - start])
                parts.append(lists.with_columns(basis=pl.lit(users.basis)))
        if len(own_N := index_N[index_N >= ends[-1]]):
            ids = unknown_ids.gather(own_N - ends[-1])
            popular = frames.popular(ids, run.dataset, options.k, how["only_I"])
            parts.append(popular.with_columns(basis=pl.lit("popular")))
        table = pl.concat(parts, how="diagonal")
        return table if is_marked else table.drop("basis")

    path = run.workdir / f"{name}.{options.format}"
    depends_on = [
        name,
        best.epoch,
        options.k,
        options.reasons,
        options.only_items,
        options.candidates,
        run.config.scoring.storage,
        _digest(run, groups, unknown_ids),
    ]
    n_rows = frames.write_in_parts(path, options.format, np.arange(n), make, depends_on)
    report.say(f"{n_rows:,} rows for {n:,} users in ", path)
    return path, make


def _digest(run: Run, groups: list[Group], unknown_ids: pl.Series) -> str:
    """Hash of who gets a list, and of the file with further histories."""
    ids = [*(users.ids.gather(user_C) for users, user_C in groups), unknown_ids]
    digest = hashlib.sha256()
    for group in ids:
        digest.update("\n".join([*group.cast(pl.String), ""]).encode())
    if run.config.recommend.histories:
        with expanded(run.config.recommend.histories).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _only(dataset: Dataset, names: str) -> np.ndarray | None:
    """True for the named items, (I,); None for all."""
    if not names:
        return None
    only_I = np.zeros(dataset.n_items, bool)
    only_I[frames.indices(Lookup(dataset.item_ids), names.split(","), "item")] = True
    return only_I


def _audience(best: Best) -> tuple[list[Group], pl.Series]:
    """(users of the data and of the histories who get a list, ids who get the popular items)."""
    run, options = best.run, best.run.config.recommend
    trained, wanted = of_data(best), options.users.split(",") if options.users else None
    groups, others = [(trained, np.arange(len(trained.ids)))], []
    if wanted is not None:
        index, texts = frames.find(Lookup(trained.ids), wanted)
        groups, others = [(trained, index[index >= 0])], frames.missing(index, texts)
    if options.histories:
        ids, histories = _histories(run)
        if wanted is None:
            others = ids.cast(pl.String).to_list()
        # Only those who are asked for are folded in.
        index, texts = frames.find(Lookup(ids), others)
        count_N = np.append(np.diff(histories.indptr), 0)  # for index -1
        index = np.where(count_N[index] > 0, index, -1)
        others, known_N = frames.missing(index, texts), index[index >= 0]
        if len(known_N):
            new = _of_histories(best, ids.gather(known_N), histories[known_N])
            groups.append((new, np.arange(len(known_N))))
    if others and options.unknown == "error":
        raise UserError(
            f"there is no user {quoted(others[0])} in the data"
            + (" or with an item of it in recommend.histories" if options.histories else "")
            + "; set recommend.unknown=skip, or popular."
        )
    if others:
        got = "no list" if options.unknown == "skip" else "the most popular items"
        warn(f"not in the data, as user {quoted(others[0])}: {len(others):,}, who get {got}.")
    return groups, frames.new_ids(others if options.unknown == "popular" else [], trained.ids)


def _histories(run: Run) -> tuple[pl.Series, scipy.sparse.csr_array]:
    """(ids of the users of `recommend.histories` who are not in the data, CSR (N, I))."""
    dataset, path = run.dataset, run.config.recommend.histories
    if jax.process_count() > 1:
        raise UserError("recommend.histories is read by one process; run --mode=recommend alone.")
    table = read_more(run.config.data, path)
    user = table["user"]
    if dataset.user_ids.dtype == pl.String:
        user = user.cast(pl.String)
    if user.dtype != dataset.user_ids.dtype:
        raise UserError(f"{path}: its user ids are texts, and those of the data are integers.")
    is_new = places(dataset.user_ids, user).is_null()
    if is_new.all():
        warn(f"{path}: none of its users is in the data; check how the ids are written.")
    user, item = user.filter(is_new), table["item"].filter(is_new)
    ids = user.unique(maintain_order=True)
    column = places(dataset.item_ids.cast(pl.String), item.cast(pl.String))
    if n_unknown := column.null_count():
        warn(f"{path}: {n_unknown:,} rows have unknown items and are left out.")
    row_E, item_E = (
        index.filter(column.is_not_null()).to_numpy() for index in (places(ids, user), column)
    )
    return ids, to_csr(row_E, item_E, (len(ids), dataset.n_items))
