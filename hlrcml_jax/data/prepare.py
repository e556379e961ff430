"""From the data section of a config to a `Dataset`, through a cache keyed by content."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from hlrcml_jax import schema, storage
from hlrcml_jax.data import downloads as catalog
from hlrcml_jax.data import kcore as preprocess
from hlrcml_jax.data import readers, saved, splits
from hlrcml_jax.data.account import EMPTY, Counts
from hlrcml_jax.data.columns import ROLES, as_integer
from hlrcml_jax.data.dataset import Dataset, count_items, to_csr
from hlrcml_jax.data.files import check_regular, expanded
from hlrcml_jax.data.growth import extended
from hlrcml_jax.data.layout import USUAL_QUOTE, ItemFile, Layout
from hlrcml_jax.data.weights import sums
from hlrcml_jax.errors import UserError, listed, shortened, warn

# Part of every cache key: raise it when the same inputs would give a different data set.
CACHE_VERSION = 7


def prepare(data: schema.Data) -> Dataset:
    """Reads, filters and splits the interactions, or loads them from the cache.

    A damaged cache entry is made again, with a warning.

    Args:
      data: the config's `data` section.

    Raises:
      UserError: naming the wrong file and line, or key.
    """
    cache_dir = cache_folder(data.cache_dir)
    files, items = _inputs(data, cache_dir)
    if data.split.kind == "given" and (data.min_per_user or data.min_per_item):
        raise UserError(
            "data.min_per_user and data.min_per_item cannot filter a given split; set them to 0."
        )
    key = _key(data, files, items)
    folder = cache_folder(data.cache_dir, "datasets") / key
    if folder.is_dir():
        try:
            return saved.load(folder)
        except UserError:
            warn(f"{folder}: this cached data set is damaged; it is made again.")
            with storage.writing(f"data.cache_dir={str(cache_dir)!r}"):
                shutil.rmtree(folder)
    dataset = _read(data, files, items)
    if data.split.keep < 1:
        dataset = _thinned(dataset, data.split)
    _check(dataset)
    dataset = dataclasses.replace(dataset, account=dataset.account.warn(*_unknown(dataset)))
    _store(dataset, folder)
    return saved.load(folder)


def prepare_more(data: schema.Data, before: Dataset) -> Dataset:
    """A data set with the interactions of `data.path` on top; see `growth.py`.

    Titles are read again, if their file is there; else new items have their ids.

    Args:
      data: the config's `data` section.
      before: the data set of a run.

    Raises:
      UserError: as `prepare`.
    """
    if not data.path:
        raise UserError("data.path: name the file with the new interactions.")
    table = read_more(data, data.path)
    dataset = extended(before, table, data.split.valid, data.split.seed, data.weight)
    if data.titles.path and expanded(data.titles.path).exists():
        _, items = _inputs(data, cache_folder(data.cache_dir))
        assert items is not None
        dataset = _titled(dataset, items)
    return dataset


def read_more(data: schema.Data, path: str) -> pl.DataFrame:
    """`user`, `item` and any `value` of the positives of another file with the first's columns.

    Args:
      data: the config's `data` section.
      path: of the file.

    Raises:
      UserError: as `prepare`.
    """
    file, names = expanded(path), data.columns
    layout = _layout(file, data, (names.user, names.item, names.value, names.time))
    roles = ("user", "item", "value")
    is_plain = readers.guess_format(file) == "delimited"  # its name says nothing
    format = data.format if is_plain else "auto"
    return readers.read_interactions(file, format, layout, data.threshold, roles)


def cache_folder(configured: str, inside: str = "") -> pathlib.Path:
    """The configured folder, or one in it; for "", `hlrcml_jax` in the user's cache folder.

    Raises:
      UserError: when it cannot be created, or others can write to it.
    """
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "hlrcml_jax")
    folder = storage.private_folder(expanded(configured or default), "data.cache_dir")
    return storage.private_folder(folder / inside, "data.cache_dir") if inside else folder


def _layout(
    path: pathlib.Path, section: schema.Data | schema.Titles, columns: tuple[str, str, str, str]
) -> Layout:
    separator = section.separator or ("\t" if ".tsv" in map(str.lower, path.suffixes) else ",")
    name = "data.titles" if isinstance(section, schema.Titles) else "data"
    layout = Layout(separator, section.header, columns, section.encoding, section.quote, name)
    if section.quote not in ("", USUAL_QUOTE) and (layout.is_long or section.quote == separator):
        raise UserError(
            f"{name}.quote={section.quote!r} needs a separator of one other byte, and "
            f"{name}.separator is {separator!r}; set {name}.quote='auto'."
        )
    return layout


def _inputs(data: schema.Data, cache_dir):
    """([(path, format, layout) of each part], the `ItemFile` or None)."""
    columns = (data.columns.user, data.columns.item, data.columns.value, data.columns.time)
    items, options = None, data.titles
    if options.path:
        path = expanded(options.path)
        items = ItemFile(
            path,
            _layout(path, options, ("", options.item, options.value, "")),
            categories=options.categories,
            category_separator=options.category_separator,
            usual=data.columns.item,
        )
    if data.split.kind == "given":
        named = {part: getattr(data.split, f"{part}_path") for part in ("train", "valid", "test")}
        if not named["train"]:
            raise UserError("data.split.kind='given' needs data.split.train_path.")
        paths = [expanded(path) for path in named.values() if path]
        return [(path, data.format, _layout(path, data, columns)) for path in paths], items
    path = expanded(data.path) if data.path else None
    if data.name:
        files = catalog.locate(data.name, path, cache_dir)
        layout = _layout(files.interactions, data, columns)
        return [(files.interactions, files.format, layout)], items or files.items
    if path is None:
        raise UserError(
            "no data: set data.name to a public data set, or data.path to your own file."
        )
    return [(path, data.format, _layout(path, data, columns))], items


def _key(data: schema.Data, files, items) -> str:
    """Hash of the files' content and of every option that affects the data set."""
    paths = [path for path, *_ in files] + ([items.path] if items else [])
    digest = hashlib.sha256()
    for path in paths:
        check_regular(path)
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}.") from None
    options = dataclasses.asdict(data)
    del options["path"], options["cache_dir"]
    options["split"] = {k: v for k, v in options["split"].items() if not k.endswith("_path")}
    layouts = [repr(rest) for _, *rest in files]
    if items:
        layouts.append(repr(dataclasses.replace(items, path=None)))
    names = [path.name for path, *_ in files]
    text = json.dumps([CACHE_VERSION, options, layouts, names], sort_keys=True)
    digest.update(text.encode())
    return digest.hexdigest()[:32]


def _read(data: schema.Data, files, items) -> Dataset:
    by_time = data.split.kind in splits.BY_TIME
    roles = ROLES if by_time else ("user", "item", "value")
    tables, before, columns = _tables(files, data.threshold, roles)
    after = list(map(readers.count, tables))
    found = (f"{role}={shortened(name)}" for role, name in columns.items())
    account = dataclasses.replace(EMPTY, columns=", ".join(found))
    for (path, *_), all_rows, kept in zip(files, before, after, strict=True):
        if data.threshold is not None:
            name = f"data.threshold={data.threshold}"
            account = account.step(
                name if len(files) == 1 else f"{name} in {path.name}", all_rows, kept
            )
    given = data.split.kind == "given"
    dataset = _given(tables, files, data) if given else _split(tables[0], data)
    similar = (_differ_in_writing(dataset, role) for role in ("user", "item"))
    account = account.warn(*filter(None, similar))
    steps = (*account.steps, *dataset.account.steps)
    dataset = dataclasses.replace(dataset, account=dataclasses.replace(account, steps=steps))
    return dataset if items is None else _titled(dataset, items)


def _tables(
    files, threshold: float | None, roles: Sequence[str]
) -> tuple[list[pl.DataFrame], list[Counts], dict[str, str]]:
    """(table of each file, counts before the threshold, columns that were found in the first).

    Ids are typed over all files together.
    """

    def read(as_text):
        return [
            readers.read_counted(path, format, layout, threshold, roles, as_text)
            for path, format, layout in files
        ]

    found = read(())
    types = {role: {table[role].dtype for table, *_ in found} for role in ("user", "item")}
    mixed = [role for role, kinds in types.items() if pl.Int64 in kinds and len(kinds) > 1]
    # 12.0 is 12 in a column of integers only, so that files of integers are read again as text.
    found = read(mixed) if mixed else found
    tables, counts, columns = zip(*found, strict=True)
    return list(tables), list(counts), columns[0]


def _titled(dataset: Dataset, items: ItemFile) -> Dataset:
    """With titles by id; where items have integers as ids, so have the titles: 012 and 12.0 too.

    Raises:
      UserError: when no item has a title. Nothing is ranked by titles, but an error before the
        training costs seconds, and an unreadable report the whole run.
    """
    found = readers.read_items(items)
    id = pl.col("id")
    if dataset.item_ids.dtype == pl.Int64:
        id = pl.coalesce(as_integer(id).cast(pl.String), id)
    found = found.with_columns(id).unique("id", keep="last", maintain_order=True)
    wanted = dataset.item_ids.cast(pl.String).alias("id").to_frame()
    before = {"titles": dataset.titles, "categories": dataset.categories}
    before = {f"{name} before": texts for name, texts in before.items() if texts is not None}
    table = wanted.join(found, on="id", how="left", maintain_order="left")
    if table["title"].null_count() == len(table):
        theirs = listed(found["id"].head(1))
        raise UserError(
            f"{items.path}: none of its ids ({theirs or 'it is empty'}) is an item of the data "
            f"({listed(wanted['id'].head(1))}); check data.titles.item, or leave data.titles.path "
            "empty."
        )
    table = table.with_columns(**before)
    titles = [name for name in ("title", "titles before", "id") if name in table.columns]
    categories = dataset.categories
    if items.categories:
        known = [name for name in ("categories", "categories before") if name in table.columns]
        categories = table.select(pl.coalesce(known)).to_series()
    return dataclasses.replace(
        dataset, titles=table.select(pl.coalesce(titles)).to_series(), categories=categories
    )


def _unknown(dataset: Dataset) -> Iterator[str]:
    """A warning for each part of which no user has a history, or no item is in training."""
    for part in ("valid", "test"):
        predicted, known = getattr(dataset, part), dataset.known(part)
        for role, found, trained in (
            ("user", np.diff(predicted.indptr), np.diff(known.indptr)),
            ("item", count_items(predicted), count_items(dataset.train)),
        ):
            if found.any() and not trained[found > 0].any():
                yield f"no {role} of the {part} part of the split is in its training part."


def _differ_in_writing(dataset: Dataset, role: str) -> str | None:
    """A warning when text ids differ only in leading zeros or in `.0`."""
    ids = dataset.user_ids if role == "user" else dataset.item_ids
    if ids.dtype == pl.Int64:
        return None
    number = pl.col("id").str.replace(r"\.0+$", "").str.replace(r"^0+(\d)", "$1")
    is_number = pl.col("id").str.contains(r"^\d+(?:\.0+)?$")
    same = (
        ids.cast(pl.String)
        .alias("id")
        .to_frame()
        .filter(is_number)
        .group_by(number.alias("number"))
    )
    groups = same.agg("id").filter(pl.col("id").list.len() > 1).sort("number")
    if groups.is_empty():
        return None
    pair = listed(groups["id"][0].sort().head(2))
    return (
        f"some {role} ids differ only in leading zeros or in '.0', like {pair} ({len(groups):,} "
        f"such groups), and are taken for different {role}s, since not all ids are plain integers."
    )


def _split(table: pl.DataFrame, data: schema.Data) -> Dataset:
    options = data.split
    positives = preprocess.positives(table, data.min_per_user, data.min_per_item)
    part_E = splits.split(
        positives,
        options.kind,
        options.valid,
        options.test,
        options.history,
        options.seed,
    )
    shape = (len(positives.user_ids), len(positives.item_ids))
    parts = [
        to_csr(positives.user_E[part_E == part], positives.item_E[part_E == part], shape)
        for part in (splits.TRAIN, splits.VALID, splits.TEST, splits.HISTORY)
    ]
    return Dataset(
        *parts,
        user_ids=positives.user_ids,
        item_ids=positives.item_ids,
        weights=sums([table], data.weight, positives.user_ids, positives.item_ids),
        account=positives.account,
    )


def _thinned(dataset: Dataset, options: schema.Split) -> Dataset:
    train = splits.thin(dataset.train, options.keep, options.seed)
    before, after = (
        Counts(part.nnz, len(np.unique(part.tocoo().row)), len(np.unique(part.indices)))
        for part in (dataset.train, train)
    )
    name = f"data.split.keep={options.keep} in the training part"
    return dataclasses.replace(
        dataset, train=train, account=dataset.account.step(name, before, after)
    )


def _given(tables, files, data: schema.Data) -> Dataset:
    """A data set from one file per part; a matrix keeps its empty rows and columns.

    Without a file for validation, its part is cut from training.
    """
    ids, options = {}, data.split
    for axis, role in enumerate(("user", "item")):
        columns = [table[role] for table in tables]
        if {column.dtype for column in columns} != {pl.Int64}:
            columns = [column.cast(pl.String) for column in columns]
        if all(path.suffix.lower() == ".npz" for path, *_ in files):
            size = max(readers.matrix_shape(path)[axis] for path, *_ in files)
            columns.append(pl.int_range(size, dtype=pl.Int64, eager=True))
        distinct, index_E = preprocess.index_ids(pl.concat(columns))
        ids[role] = distinct, np.split(index_E, np.cumsum([len(column) for column in columns]))
    shape = (len(ids["user"][0]), len(ids["item"][0]))
    parts = [
        to_csr(ids["user"][1][part], ids["item"][1][part], shape) for part in range(len(tables))
    ]
    for role in ("user", "item"):
        distinct, index_by_part = ids[role]
        _check_known(role, distinct, index_by_part, [path for path, *_ in files])
    for a, b in itertools.combinations(range(len(parts)), 2):
        shared = (parts[a].astype(np.int8) * parts[b].astype(np.int8)).nnz
        if shared:
            raise UserError(
                f"{files[b][0]}: {shared} of its interactions are in {files[a][0]} as well; "
                "remove them from one of the two."
            )
    account = EMPTY
    for table, part, (path, *_) in zip(tables, parts, files, strict=True):
        before = readers.count(table)
        after = dataclasses.replace(before, rows=part.nnz)
        account = account.step(f"merging duplicates in {path.name}", before, after)
    if not options.valid_path:
        before = readers.count(tables[0])
        parts[:1] = splits.cut_validation(parts[0], options.valid, options.seed)
        after = dataclasses.replace(before, rows=before.rows - parts[1].nnz)
        name = f"cutting validation (data.split.valid={options.valid}) off {files[0][0].name}"
        account = account.step(name, before, after)
    nothing = to_csr(np.empty(0, int), np.empty(0, int), shape)
    parts += [nothing] * (4 - len(parts))
    user_ids, item_ids = ids["user"][0], ids["item"][0]
    weights = sums(tables, data.weight, user_ids, item_ids)
    return Dataset(*parts, user_ids=user_ids, item_ids=item_ids, weights=weights, account=account)


def _check_known(role: str, ids: pl.Series, index_by_part, paths: Sequence[pathlib.Path]) -> None:
    """Refuses a part of which no user, or no item, is in training: the ids are not the same."""
    trained = np.unique(index_by_part[0])
    for index_E, path in zip(index_by_part[1:], paths[1:], strict=False):
        if len(index_E) and len(trained) and not np.isin(index_E, trained).any():
            here, there = (listed(map(str, ids.gather([index[0]]))) for index in (index_E, trained))
            raise UserError(
                f"{path}: none of its {role}s is in the training part ({here} here, {there} "
                f"there); check data.columns.{role}, and how ids are written."
            )


def _check(dataset: Dataset) -> None:
    if dataset.n_users < 2:
        raise UserError(
            "only one user is left, and a recommender needs at least two; check data.columns.user, "
            "data.separator and data.min_per_user."
        )
    if dataset.train.nnz == 0:
        raise UserError(
            "the training part of the split is empty; lower data.split.valid and data.split.test, "
            "or choose another data.split.kind."
        )
    full_U = np.diff(dataset.train.indptr) == dataset.n_items
    if full_U.all():
        raise UserError(
            f"every user has all {dataset.n_items} items, so there are no negatives and nothing "
            "to rank; check data.columns.item."
        )


def _store(dataset: Dataset, folder: pathlib.Path) -> None:
    """Writes the cache entry atomically: to a scratch folder beside it, then renamed."""
    with storage.writing(f"data.cache_dir={str(folder.parents[1])!r}"):
        scratch = pathlib.Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            saved.save(dataset, scratch)
            catalog.move_whole(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
