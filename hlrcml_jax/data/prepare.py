"""From the data section of a config to a `Dataset`, through a cache keyed by content."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile

import numpy as np
import polars as pl

from hlrcml_jax import schema, storage
from hlrcml_jax.data import downloads as catalog
from hlrcml_jax.data import kcore as preprocess
from hlrcml_jax.data import readers, splits
from hlrcml_jax.data.columns import ROLES
from hlrcml_jax.data.dataset import PARTS, Dataset, is_intact, to_csr
from hlrcml_jax.data.layout import ItemFile, Layout
from hlrcml_jax.errors import UserError, warn

# Part of every cache key: raise it when the same inputs would give a different data set.
CACHE_VERSION = 5


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
    folder = cache_dir / "datasets" / key
    if folder.is_dir() and not is_intact(folder):
        warn(f"{folder}: this cached data set is damaged; it is made again.")
        with storage.writing(f"data.cache_dir={str(cache_dir)!r}"):
            shutil.rmtree(folder)
    if not folder.is_dir():
        dataset = _read(data, files, items)
        if data.split.keep < 1:
            train = splits.thin(dataset.train, data.split.keep, data.split.seed)
            dataset = dataclasses.replace(dataset, train=train)
        _check(dataset)
        _store(dataset, folder)
    return Dataset.load(folder)


def cache_folder(configured: str) -> pathlib.Path:
    """The configured folder; for "", `hlrcml_jax` in the user's cache folder.

    Raises:
      UserError: when it cannot be created, or others can write to it.
    """
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "hlrcml_jax")
    folder = pathlib.Path(configured or default).expanduser()
    return storage.private_folder(folder, "data.cache_dir")


def _layout(
    path: pathlib.Path, section: schema.Data | schema.Titles, columns: tuple[str, str, str, str]
) -> Layout:
    separator = section.separator or ("\t" if ".tsv" in path.suffixes else ",")
    return Layout(separator, section.header, columns)


def _inputs(data: schema.Data, cache_dir):
    """([(path, format, layout) of each part], the `ItemFile` or None)."""
    columns = (data.columns.user, data.columns.item, data.columns.value, data.columns.time)
    items, options = None, data.titles
    if options.path:
        path = pathlib.Path(options.path).expanduser()
        items = ItemFile(
            path,
            _layout(path, options, ("", options.item, options.value, "")),
            categories=options.categories,
            category_separator=options.category_separator,
            usual=data.columns.item,
        )
    if data.split.kind == "given":
        paths = [getattr(data.split, f"{part}_path") for part in ("train", "valid", "test")]
        for part, path in zip(PARTS, paths, strict=False):
            if not path:
                raise UserError(f"data.split.kind='given' needs data.split.{part}_path.")
        paths = [pathlib.Path(path).expanduser() for path in paths]
        return [(path, data.format, _layout(path, data, columns)) for path in paths], items
    path = pathlib.Path(data.path).expanduser() if data.path else None
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
        storage.check_file(path)
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
    tables = [
        readers.read_interactions(path, format, layout, data.threshold, roles)
        for path, format, layout in files
    ]
    given = data.split.kind == "given"
    dataset = _given(tables, files) if given else _split(tables[0], data)
    if items is None:
        return dataset
    wanted = dataset.item_ids.cast(pl.String).alias("id").to_frame()
    table = wanted.join(readers.read_items(items), on="id", how="left", maintain_order="left")
    return dataclasses.replace(
        dataset,
        titles=table["title"].fill_null(table["id"]),
        categories=table["categories"] if items.categories else None,
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
    return Dataset(*parts, user_ids=positives.user_ids, item_ids=positives.item_ids)


def _given(tables, files) -> Dataset:
    """A data set from one file per part; a matrix keeps its empty rows and columns."""
    ids = {}
    for axis, role in enumerate(("user", "item")):
        columns = [table[role] for table in tables]
        if {column.dtype for column in columns} != {pl.Int64}:
            columns = [column.cast(pl.String) for column in columns]
        if all(path.suffix == ".npz" for path, *_ in files):
            size = max(readers.load_matrix(path).shape[axis] for path, *_ in files)
            columns.append(pl.int_range(size, dtype=pl.Int64, eager=True))
        distinct, index_E = preprocess.index_ids(pl.concat(columns))
        ids[role] = distinct, np.split(index_E, np.cumsum([len(column) for column in columns]))
    shape = (len(ids["user"][0]), len(ids["item"][0]))
    parts = [
        to_csr(ids["user"][1][part], ids["item"][1][part], shape) for part in range(len(tables))
    ]
    for a, b in itertools.combinations(range(len(parts)), 2):
        shared = (parts[a].astype(np.int8) * parts[b].astype(np.int8)).nnz
        if shared:
            raise UserError(
                f"{files[b][0]}: {shared} of its interactions are in {files[a][0]} as well; "
                "remove them from one of the two."
            )
    parts.append(to_csr(np.empty(0, int), np.empty(0, int), shape))
    return Dataset(*parts, user_ids=ids["user"][0], item_ids=ids["item"][0])


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
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            dataset.save(scratch)
            catalog.move_whole(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
