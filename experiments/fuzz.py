"""Feeds files of every kind, with the cases of a coverage-guided fuzzer, to what reads them.

pip install atheris
python experiments/fuzz.py own.jsonl runs/corpus -max_total_time=1800 -max_len=4096

The arguments are a kind of file (see KINDS), a folder of cases, which grows, and libFuzzer's flags.
A case is a byte for the options of its reader, and the file's content. Any result but a table, a
config or one sentence is a finding, and left in `crash-*`; once fixed, it goes with a byte for its
kind before it to `tests/fixtures/hostile/`, which the tests check.
"""

import gzip
import inspect
import io
import json
import lzma
import pathlib
import sys
import tempfile
import zipfile

import numpy as np
import polars as pl
import rich
import scipy.sparse

from hlrcml_jax import config as config_lib
from hlrcml_jax import config_files, registry, schema
from hlrcml_jax.data import layout as layouts
from hlrcml_jax.data import readers, saved
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.data.prepare import prepare
from hlrcml_jax.errors import MAX_SENTENCE, UserError
from hlrcml_jax.reporting import log, plots
from hlrcml_jax.runs import workdir
from hlrcml_jax.runs.run import Run
from hlrcml_jax.training import warm_start

SEPARATORS = (",", "\t", ";", " ", "::", "|", "||", "\x01")
ENCODINGS = ("utf-8", "latin-1", "utf-16", "ascii")


def read_table(name: str, format: str = "auto"):
    """A reader of interactions, from a file of that name."""

    def read(folder: pathlib.Path, how: int, content: bytes) -> None:
        path = folder / name
        path.write_bytes(content)
        quoting, encoding = ("auto", '"')[how >> 5 & 1], ENCODINGS[how >> 6 & 3]
        layout = layouts.Layout(
            SEPARATORS[how % 8], bool(how & 8), encoding=encoding, quoting=quoting
        )
        threshold = 4.0 if how & 16 else None
        table = readers.read_interactions(path, format, layout, threshold)
        assert {"user", "item"} <= set(table.columns)
        assert table.null_count().sum_horizontal()[0] == 0

    return read


def read_items(folder: pathlib.Path, how: int, content: bytes) -> None:
    """The reader of titles and categories."""
    path = folder / "items.csv"
    path.write_bytes(content)
    columns, encoding = ("", "0", "1", ""), ENCODINGS[how >> 4 & 3]
    layout = layouts.Layout(SEPARATORS[how % 8], bool(how & 8), columns, encoding)
    readers.read_items(layouts.ItemFile(path, layout, "2" if how & 64 else ""))


def read_vectors(folder: pathlib.Path, how: int, content: bytes) -> None:
    """The reader of initial vectors."""
    path = folder / f"vectors.{('npy', 'npz')[how & 1]}"
    path.write_bytes(content)
    found = warm_start.read_vectors("pretrained.item_vectors", path)
    ids = pl.Series(["1", "2", "3"])
    warm_start.warm_start("pretrained.item_vectors", found, ids, np.zeros((3, 3), np.float32), 2)


def read_config(folder: pathlib.Path, how: int, content: bytes) -> None:
    """A config from JSON, from a workdir, or from KEY=VALUE."""
    if how % 3 == 0:
        try:
            values = json.loads(content)
        except ValueError:
            return
        if isinstance(values, dict):
            config_lib.make_config(values)
    elif how % 3 == 1:
        (folder / "config.json").write_bytes(content)
        config_files.from_workdir(folder)
    else:
        text = content.decode(errors="replace")
        config_lib.make_config(dict(map(config_files.parse_change, text.split("\n"))))


def run_pipeline(folder: pathlib.Path, how: int, content: bytes) -> None:
    """From a file to a dataset, and again from the cache."""
    path = folder / "own.csv"
    path.write_bytes(content)
    data = schema.Data(
        path=str(path),
        cache_dir=str(folder / "cache"),
        separator=SEPARATORS[how % 8],
        header=bool(how & 8),
        min_per_user=how >> 4 & 1,
        split=schema.Split(kind=registry.SPLITS[(how >> 5) % len(registry.SPLITS)]),
    )
    assert prepare(data).fingerprint() == prepare(data).fingerprint()


def run_given(folder: pathlib.Path, how: int, content: bytes) -> None:
    """From the three files of a given split, cut at blank lines, and a file of titles."""
    ending = ("csv", "jsonl", "tsv", "txt")[how & 3]
    parts = [*content.split(b"\n\n"), b"", b"", b"", b""]
    paths = [str(folder / f"{name}.{ending}") for name in ("train", "valid", "test")]
    for path, part in zip(paths, parts, strict=False):
        pathlib.Path(path).write_bytes(part)
    (folder / "titles.csv").write_bytes(parts[3])
    titles = schema.Titles(path=str(folder / "titles.csv") if how & 4 else "")
    names = ("train_path", "valid_path", "test_path")
    data = schema.Data(
        cache_dir=str(folder / "cache"),
        titles=titles,
        split=schema.Split(kind="given", **dict(zip(names, paths, strict=True))),
    )
    assert prepare(data).account == prepare(data).account


def prepared(folder: pathlib.Path) -> tuple[schema.Data, Dataset]:
    """A small data set, cached in the folder."""
    (folder / "own.csv").write_text(rows_as_text(",", "user,item,rating,time\n"))
    data = schema.Data(path=str(folder / "own.csv"), cache_dir=str(folder / "cache"))
    return data, prepare(data)


def overwrite(path: pathlib.Path, content: bytes) -> None:
    """Replaces bytes of a file: two bytes of the content are the place, the rest are written."""
    saved = path.read_bytes()
    place = int.from_bytes(content[:2], "little") % (len(saved) + 1)
    path.write_bytes(saved[:place] + content[2:] + saved[place + len(content[2:]) :])


def open_run(folder: pathlib.Path, how: int, content: bytes) -> None:
    """A workdir whose `config.json` is somebody else's, or damaged."""
    data, dataset = prepared(folder)
    config = config_lib.validate(schema.Config(data=data))
    Run(config, dataset, folder).write_config()
    if how & 1:
        (folder / "config.json").write_bytes(content)
    else:
        overwrite(folder / "config.json", content)
    workdir.open_run(config, folder)


def read_metrics(folder: pathlib.Path, how: int, content: bytes) -> None:
    """The log of a run, as it is resumed and as it is drawn."""
    path = folder / "metrics.jsonl"
    path.write_bytes(content)
    with log.MetricsLog(path, how):
        records = log.read_log(path)
    assert all(record["epoch"] <= how for record in records)
    if how % 8 == 0 and any("loss" in record for record in records):  # drawing is slow
        plots.svg(plots.plot_learning_curve(records, "ndcg@10", how), "curve", "")


def load_cached(folder: pathlib.Path, how: int, content: bytes) -> None:
    """A cached data set with a damaged file."""
    data, dataset = prepared(folder)
    fingerprint = dataset.fingerprint()  # before its mapped files change
    files = sorted(folder.glob("cache/datasets/*/*"))
    overwrite(files[how % len(files)], content)
    assert prepare(data).fingerprint() == fingerprint


def load_saved(folder: pathlib.Path, how: int, content: bytes) -> None:
    """A data set in a workdir, with a file that a stranger has changed, and its digest too."""
    inside = folder / "data"
    saved.save(prepared(folder)[1], inside)
    files = sorted(path for path in inside.iterdir() if path.name != saved.DIGESTS)
    overwrite(files[how % len(files)], content)
    digests = {path.name: saved.digest(path) for path in files}
    (inside / saved.DIGESTS).write_text(json.dumps(digests))
    assert saved.load(inside).fingerprint()


KINDS = {
    "own.csv": read_table("own.csv"),
    "own.jsonl": read_table("own.jsonl"),
    "own.parquet": read_table("own.parquet"),
    "adjacency": read_table("adjacency.txt", "adjacency"),
    "adjacency_counted": read_table("counted.txt", "adjacency_counted"),
    "own.npz": read_table("own.npz"),
    "own.csv.gz": read_table("own.csv.gz"),
    "own.csv.xz": read_table("own.csv.xz"),
    "own.csv.zip": read_table("own.csv.zip"),
    "u.data": read_table("u.data"),
    "ratings.dat": read_table("ratings.dat"),
    "own.inter": read_table("own.inter"),
    "yelp.json": read_table("yelp_academic_dataset_review.json"),
    "items": read_items,
    "vectors": read_vectors,
    "config": read_config,
    "pipeline": run_pipeline,
    "given": run_given,
    "config.json": open_run,
    "metrics.jsonl": read_metrics,
    "cached": load_cached,
    "saved": load_saved,
}


READERS = tuple(KINDS.values())


def check(case: bytes) -> None:
    """Reads a case; raises unless it gives a result or one sentence."""
    if len(case) < 2:
        return
    with tempfile.TemporaryDirectory(prefix="hlrcml_jax-") as folder:
        try:
            READERS[case[0] % len(READERS)](pathlib.Path(folder), case[1], case[2:])
        except UserError as error:
            said = str(error)
        else:
            return
    assert said.strip(), "an empty sentence"
    assert len(said.splitlines()) == 1, "more than one line"
    assert len(said) <= MAX_SENTENCE, "a sentence that is too long"


ROWS = [(u, i, float(u % 3 + 3), 100 * u + i) for u in range(1, 6) for i in range(u, u + 5)]


def rows_as_text(separator: str, head: str = "") -> str:
    return head + "".join(separator.join(map(str, row)) + "\n" for row in ROWS)


def seeds() -> list[bytes]:
    """A valid case of each kind, for the fuzzer to start from."""

    def written(write, *args):
        file = io.BytesIO()
        write(file, *args)
        return file.getvalue()

    table = pl.DataFrame(ROWS, ["user", "item", "rating", "time"], orient="row")
    own = rows_as_text(",", "user,item,rating,time\n").encode()
    user, item, *_ = map(np.array, zip(*ROWS, strict=True))
    matrix = scipy.sparse.csr_array((np.ones(len(ROWS)), (user, item)))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("../own.csv", own)
    yelp = [{"user_id": "u", "business_id": "b", "stars": 4, "date": "2020-01-01 10:00:00"}]
    config = {"seed": 1, "model.dim": 8, "data.split.kind": "random", "evaluation.cutoffs": [5]}
    vectors = np.ones((3, 2), np.float32)
    epochs = [{"epoch": epoch, "loss": 1 / epoch, "ndcg@10": 0.1 * epoch} for epoch in (1, 2, 3)]
    contents = {
        0: own,
        1: table.write_ndjson().encode(),
        2: written(lambda file: table.write_parquet(file)),
        3: b"1 2 3\n2 3 4\n",
        4: b"2 2 3\n2 3 4\n",
        5: written(scipy.sparse.save_npz, matrix),
        6: gzip.compress(own, mtime=0),
        7: lzma.compress(own),
        8: archive.getvalue(),
        9: rows_as_text("\t").encode(),
        10: rows_as_text("::").encode(),
        11: rows_as_text("\t", "user_id:token\titem_id:token\trating:float\ttime:float\n").encode(),
        12: "".join(json.dumps(line) + "\n" for line in yelp).encode(),
        13: 'id,title,genres\n1,"Amélie (2001)",x|y\n2,Se7en,(no genres listed)\n'.encode(),
        14: written(np.save, vectors),
        16: own,
        18: json.dumps({"config": config, "data": "0"}).encode(),
        19: "".join(json.dumps(record) + "\n" for record in epochs).encode(),
        20: b"\0\0\1",
        17: b"user,item\n1,2\n2,3\n\nuser,item\n1.0,3\n\nuser,item\n2,2\n\nitem,title\n2,x\n",
    }
    hows = {17: 12, 18: 1}
    cases = [bytes([kind, hows.get(kind, 8)]) + content for kind, content in contents.items()]
    cases.append(
        bytes([14, 1]) + written(lambda file: np.savez(file, ids=[1, 2, 3], vectors=vectors))
    )
    cases.append(bytes([15, 0]) + json.dumps(config).encode())
    cases.append(bytes([15, 1]) + json.dumps({"config": config, "data": "0"}).encode())
    cases.append(bytes([15, 2]) + b"seed=1\nmodel.dim=8\ndata.titles.path='x'")
    return cases


def instrument(module, wrap) -> None:
    """Counts the branches of a module's functions and methods."""
    for owner in (module, *filter(inspect.isclass, vars(module).values())):
        for name, value in list(vars(owner).items()):
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                setattr(owner, name, wrap(value))


def main() -> None:
    import atheris

    if len(sys.argv) < 3 or sys.argv[1] not in KINDS:
        raise SystemExit(f"usage: fuzz.py KIND FOLDER FLAGS, where KIND is one of {[*KINDS]}.")
    kind = list(KINDS).index(sys.argv.pop(1))
    rich.get_console().quiet = True
    for name, module in list(sys.modules.items()):
        if name.startswith("hlrcml_jax"):
            instrument(module, atheris.instrument_func)
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(seeds()):
        if case[0] == kind:
            (folder / f"seed-{number:02d}").write_bytes(case[1:])
    atheris.Setup(sys.argv, lambda case: check(bytes([kind]) + case))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
