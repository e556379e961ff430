"""Feeds the readers and the config schema the cases of a coverage-guided fuzzer.

pip install atheris
python experiments/fuzz.py runs/corpus -max_total_time=1800 -max_len=4096

The arguments are libFuzzer's: folders of cases, which grow, and flags. A case is a reader (a byte,
see KINDS), its options (a byte), and a file's content. Any result but a table, a config or one
sentence is a finding, and left in `crash-*`; once fixed, it goes to `tests/fixtures/hostile/`,
which the tests check.
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
from hlrcml_jax.data import readers
from hlrcml_jax.data.prepare import prepare
from hlrcml_jax.errors import MAX_SENTENCE, UserError
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
    found = warm_start.read_vectors("pretrained.items", path)
    ids = pl.Series(["1", "2", "3"])
    warm_start.warm_start("pretrained.items", found, ids, np.zeros((3, 2), np.float32))


def read_config(folder: pathlib.Path, how: int, content: bytes) -> None:
    """A config from JSON, from a workdir's, or from KEY=VALUE."""
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


KINDS = (
    read_table("own.csv"),
    read_table("own.jsonl"),
    read_table("own.parquet"),
    read_table("adjacency.txt", "adjacency"),
    read_table("counted.txt", "adjacency_counted"),
    read_table("own.npz"),
    read_table("own.csv.gz"),
    read_table("own.csv.xz"),
    read_table("own.csv.zip"),
    read_table("u.data"),
    read_table("ratings.dat"),
    read_table("own.inter"),
    read_table("yelp_academic_dataset_review.json"),
    read_items,
    read_vectors,
    read_config,
    run_pipeline,
    run_given,
)


def check(case: bytes) -> None:
    """Reads a case; raises unless it gives a result or one sentence."""
    if len(case) < 2:
        return
    with tempfile.TemporaryDirectory(prefix="hlrcml_jax-") as folder:
        try:
            KINDS[case[0] % len(KINDS)](pathlib.Path(folder), case[1], case[2:])
        except UserError as error:
            said = str(error)
        else:
            return
    assert said.strip(), "an empty sentence"
    assert len(said.splitlines()) == 1, "more than one line"
    assert len(said) <= MAX_SENTENCE, "a sentence that is too long"


def seeds() -> list[bytes]:
    """A valid case of each kind, for the fuzzer to start from."""
    rows = [(u, i, float(u % 3 + 3), 100 * u + i) for u in range(1, 6) for i in range(u, u + 5)]

    def text(separator, head=""):
        return head + "".join(separator.join(map(str, row)) + "\n" for row in rows)

    def written(write, *args):
        file = io.BytesIO()
        write(file, *args)
        return file.getvalue()

    table = pl.DataFrame(rows, ["user", "item", "rating", "time"], orient="row")
    own = text(",", "user,item,rating,time\n").encode()
    user, item, *_ = map(np.array, zip(*rows, strict=True))
    matrix = scipy.sparse.csr_array((np.ones(len(rows)), (user, item)))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("../own.csv", own)
    yelp = [{"user_id": "u", "business_id": "b", "stars": 4, "date": "2020-01-01 10:00:00"}]
    config = {"seed": 1, "model.dim": 8, "data.split.kind": "random", "evaluation.cutoffs": [5]}
    vectors = np.ones((3, 2), np.float32)
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
        9: text("\t").encode(),
        10: text("::").encode(),
        11: text("\t", "user_id:token\titem_id:token\trating:float\ttime:float\n").encode(),
        12: "".join(json.dumps(line) + "\n" for line in yelp).encode(),
        13: 'id,title,genres\n1,"Amélie (2001)",x|y\n2,Se7en,(no genres listed)\n'.encode(),
        14: written(np.save, vectors),
        16: own,
        17: b"user,item\n1,2\n2,3\n\nuser,item\n1.0,3\n\nuser,item\n2,2\n\nitem,title\n2,x\n",
    }
    cases = [bytes([kind, 12 if kind == 17 else 8]) + content for kind, content in contents.items()]
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

    rich.get_console().quiet = True
    for name, module in list(sys.modules.items()):
        if name.startswith("hlrcml_jax"):
            instrument(module, atheris.instrument_func)
    folder = pathlib.Path(next((arg for arg in sys.argv[1:] if not arg.startswith("-")), "corpus"))
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(seeds()):
        (folder / f"seed-{number:02d}").write_bytes(case)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
