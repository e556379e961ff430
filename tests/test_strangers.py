"""A workdir of a stranger: nothing in it is executed, followed or taken for markup."""

import csv
import json
import os
import pathlib
import shutil
import tempfile

import polars as pl
import pytest
from rich.console import Console

import hlrcml_jax as hlr
from hlrcml_jax import config as config_lib
from hlrcml_jax import config_files, devices, frames, storage
from hlrcml_jax.data import synthetic
from hlrcml_jax.errors import UserError, warn
from hlrcml_jax.reporting import console
from hlrcml_jax.runs import experiment, lists
from hlrcml_jax.runs.build import best_checkpoint
from hlrcml_jax.runs.workdir import open_run

TEXTS = (
    "[/b]",
    "[link=http://example.org]free[/link]",
    "$\\frac$",
    "=1+1",
    "\x1b[2J\u202egnp",
    "@x",
)
MODES = (
    experiment.test,
    lists.write_recommendations,
    lists.write_reasons,
    experiment.export,
    experiment.analyse,
)


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """(config values, workdir) of a finished run; markup in ids, titles, categories, its name."""
    folder = tmp_path_factory.mktemp("stranger")
    text = pl.Series([f"{TEXTS[item % len(TEXTS)]}{item}" for item in range(40)])
    table = synthetic.generate(60, 40, 2400, seed=1)
    table = table.with_columns(
        user=pl.lit("[/u]") + pl.col("user").cast(pl.String), item=text.gather(table["item"])
    )
    table.write_csv(folder / "own.csv")
    titles = {"item": text, "title": text, "kinds": [TEXTS[item % 4] for item in range(40)]}
    pl.DataFrame(titles).write_csv(folder / "titles.csv")
    values = small | {
        "data.path": str(folder / "own.csv"),
        "data.titles.path": str(folder / "titles.csv"),
        "data.titles.categories": "kinds",
        "train.epochs": 1,
        "recommend.format": "csv",
        "recommend.k": 3,
    }
    workdir = folder / "[b]a[12]*[/i]"
    experiment.train_and_evaluate(config_lib.make_config(values), workdir)
    return values, workdir


@pytest.fixture
def workdir(made, tmp_path):
    """A copy of the stranger's workdir."""
    return shutil.copytree(made[1], tmp_path / "run[1]")


def test_a_run_with_markup_everywhere_goes_through_every_mode(made, workdir, capsys):
    values, _ = made
    longer = config_lib.make_config(values | {"train.epochs": 2})
    experiment.train_and_evaluate(longer, workdir)
    for mode in MODES:
        mode(best_checkpoint(open_run(longer, workdir)))
    shown = capsys.readouterr().out
    assert "[/b]" in shown
    assert "[link=" in shown
    assert "run[1]" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    with (workdir / "recommendations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 180
    assert not [row for row in rows if row["item_id"][0] in "=@" or row["title"][0] in "=@"]
    page = (workdir / "report.html").read_text()
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_text_on_a_terminal_is_what_it_is(capsys):
    terminal = Console(force_terminal=True, width=200)
    for text in TEXTS:
        with terminal.capture() as printed:
            terminal.print(console.plain(text))
        assert "\x1b" not in printed.get()
        assert "\u202e" not in printed.get()
    warn("an id \x1b[2J")
    assert "\x1b" not in capsys.readouterr().err


def test_no_cell_of_a_csv_file_is_a_formula(tmp_path):
    texts = ["=1", "+1", "-1", "@x", "\tx", "\rx", "a=1", None]
    table = pl.LazyFrame({"text": texts, "number": [-float(n) for n in range(8)]})
    frames.WRITERS["csv"](table, tmp_path / "out.csv")
    found = pl.read_csv(tmp_path / "out.csv")
    escaped = [f"'{text}" for text in texts[:6]]
    assert found["text"].to_list() == [*escaped, "a=1", None]
    assert found["number"].to_list() == [-float(n) for n in range(8)]


def rewrite(workdir, **changes):
    path = workdir / "config.json"
    content = json.loads(path.read_text())
    content["config"] |= {name.replace("__", "."): value for name, value in changes.items()}
    path.write_text(json.dumps(content))


def test_the_cache_is_never_that_of_a_workdir(workdir, tmp_path, monkeypatch):
    """Neither when it is loaded nor when it gives its embeddings to another run."""
    planted, folders = tmp_path / "planted", []
    rewrite(workdir, data__cache_dir=str(planted))
    monkeypatch.setattr(devices, "keep_compiled", folders.append)
    own = str(tmp_path / "own")
    hlr.load(workdir, data__cache_dir=own)
    run = hlr.make_config({"data.cache_dir": own, "pretrained.item_vectors": str(workdir)})
    given = open_run(config_files.from_workdir(workdir, {"data.cache_dir": own}), workdir)
    changed = config_lib.flatten(given.config) | {"pretrained.item_vectors": str(workdir)}
    experiment.fit(config_lib.make_config(changed), tmp_path / "next")
    assert run.data.cache_dir == own
    assert set(map(str, folders)) == {f"{own}/compiled"}
    assert not planted.exists()
    assert config_files.from_workdir(workdir).data.cache_dir == ""


def test_code_that_a_workdir_names_is_not_imported(workdir, tmp_path, monkeypatch):
    made_by_code = tmp_path / "imported"
    (tmp_path / "planted.py").write_text(f"open({str(made_by_code)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for key, value in (
        ("model.name", "planted:Model"),
        ("loss.kind", "planted:loss"),
        ("negatives.weights", "planted:weights"),
        ("evaluation.metrics", ["planted:metric"]),
    ):
        rewrite(workdir, **{key: value})
        with pytest.raises(UserError, match="names code to import"):
            hlr.load(workdir)
    assert not made_by_code.exists()


@pytest.fixture
def locked(made):
    """(config values, workdir, own folder) of a run that this process may read and not write."""
    folder = pathlib.Path(tempfile.mkdtemp())  # others may not enter pytest's
    values, own = dict(made[0]), folder / "own"
    workdir = shutil.copytree(made[1], folder / "run")
    for key in ("data.path", "data.titles.path"):
        values[key] = shutil.copy(values[key], folder)
    own.mkdir()
    own.chmod(0o777)
    for path in (workdir, folder):
        path.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root may write everywhere
    yield values | {"data.cache_dir": str(own / "cache")}, workdir, own
    if root:
        os.seteuid(0)
    for path in (folder, workdir):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.filterwarnings("ignore:Error (reading|writing) persistent compilation cache")
def test_a_run_that_cannot_be_written_is_used_and_else_a_sentence(locked):
    values, workdir, own = locked
    before = sorted(workdir.rglob("*"))
    paths = {name: values[name] for name in values if name.endswith(("path", "cache_dir"))}
    loaded = hlr.load(workdir, **{name.replace(".", "__"): value for name, value in paths.items()})
    assert len(loaded.recommend(k=2)) == 120
    config = config_lib.make_config(values | {"train.epochs": 2})
    for use in (
        lambda: experiment.test(best_checkpoint(open_run(config, workdir))),
        lambda: lists.write_recommendations(best_checkpoint(open_run(config, workdir))),
        lambda: experiment.export(best_checkpoint(open_run(config, workdir))),
        lambda: experiment.fit(config, workdir),
        lambda: experiment.fit(config, workdir.parent / "new"),
    ):
        with pytest.raises(UserError, match="cannot be written.*Permission denied"):
            use()
    assert sorted(workdir.rglob("*")) == before
    (own / "cache" / "datasets").chmod(0o500)
    other = config_lib.make_config(values | {"data.split.seed": 1})
    with pytest.raises(UserError, match=r"data\.cache_dir=.*cannot be written"):
        experiment.fit(other, own / "run")
    (own / "cache" / "datasets").chmod(0o700)


LINKS = {
    "config.json": "other/file",
    "metrics.jsonl": "other/file",
    ".lock": "other/file",
    "events.out.tfevents.1": "other/file",
    "checkpoints": "other",
    "checkpoints/9": "other",
    "damaged": "other",
    "export": "other",
    "plots": "other",
    ".parts-0123456789abcdef": "other",
}


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_in_a_workdir_are_refused(made, workdir, tmp_path, name, kind):
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("precious")
    path = workdir / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / LINKS[name]) if kind == "link" else os.mkfifo(path)
    config = config_lib.make_config(made[0])
    for use in (open_run, experiment.fit):
        with pytest.raises(UserError, match="in a workdir is not followed"):
            use(config, workdir)
    assert (other / "file").read_text() == "precious"
    assert [*other.iterdir()] == [other / "file"]


def test_files_are_replaced_and_not_written_through_links(made, workdir, tmp_path):
    """Those that are made as a whole, and scratch files with the names of earlier versions."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in ("report.html", "test_metrics.json", "recommendations.csv"):
        (workdir / name).unlink(missing_ok=True)
        (workdir / name).symlink_to(precious)
        (workdir / f"part-{name}").symlink_to(precious)
    left = workdir / ".part-0123456789abcdef-config.json"  # by a killed program
    left.symlink_to(precious)
    config = config_lib.make_config(made[0])
    experiment.train_and_evaluate(config, workdir)
    lists.write_recommendations(best_checkpoint(open_run(config, workdir)))
    assert precious.read_text() == "precious"
    assert not (workdir / "recommendations.csv").is_symlink()
    assert not left.is_symlink()
    with pytest.raises(UserError, match="part-report.html cannot be written"):
        storage.append_text(workdir / "part-report.html", "more")
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("key", ["data.path", "data.titles.path", "pretrained.item_vectors"])
@pytest.mark.parametrize("path", ["/dev/zero", "pipe"])
def test_paths_in_a_config_that_never_end_are_refused(made, tmp_path, key, path):
    os.mkfifo(tmp_path / "pipe")
    config = config_lib.make_config(made[0] | {key: str(tmp_path / path)})
    with pytest.raises(UserError, match="this is a pipe"):
        experiment.fit(config, tmp_path / "run")


def test_checkpoints_of_another_run_are_refused_when_the_config_is_lost(made, workdir):
    values, _ = made
    (workdir / "config.json").unlink()
    for changes in ({"seed": 1}, {"data.split.seed": 1}):
        with pytest.raises(UserError, match="a run with another config or other data"):
            experiment.fit(config_lib.make_config(values | changes), workdir)
        assert not (workdir / "config.json").exists()
    experiment.fit(config_lib.make_config(values | {"train.epochs": 2}), workdir)
    log = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2]
