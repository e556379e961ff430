"""Whatever a file holds, the end is a table, a config or one sentence."""

import gzip
import pathlib
import pickle

import numpy as np
import polars as pl
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from hlrcml_jax import config_files, schema
from hlrcml_jax.data import files, readers
from hlrcml_jax.data.layout import Layout
from hlrcml_jax.data.prepare import prepare
from hlrcml_jax.errors import UserError
from hlrcml_jax.runs.checkpoints import Checkpoints

FOUND = sorted((ROOT / "tests" / "fixtures" / "hostile").iterdir())
fuzz = config_files.load(ROOT / "experiments" / "fuzz.py")


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_the_fuzzer_found(path):
    fuzz.check(path.read_bytes())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_files(data):
    """A good case of any kind with some bytes replaced, or another way to read it."""
    case = data.draw(st.sampled_from(fuzz.seeds()))
    place = data.draw(st.integers(1, len(case)))
    end = data.draw(st.integers(place, min(len(case), place + 8)))
    fuzz.check(case[:place] + data.draw(st.binary(max_size=8)) + case[end:])


def read(path, content, **layout):
    path.write_bytes(content)
    return readers.read_interactions(path, "auto", Layout(**layout))


def test_a_bomb_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MIN_LIMIT", 1000)
    with pytest.raises(UserError, match=r"bomb.csv.gz: more than .* bytes come out of it"):
        read(tmp_path / "bomb.csv.gz", gzip.compress(b"user,item\n" + b"0,0\n" * 10**6))


def test_a_line_of_ten_million_characters(tmp_path):
    table = read(tmp_path / "long.csv", b"user,item\n" + b"x" * 10**7 + b",1\n")
    assert len(table["user"].cast(pl.String)[0]) == 10**7
    with pytest.raises(UserError, match="no column that looks like the user"):
        read(tmp_path / "long.csv", b"x" * 10**7)


@pytest.mark.parametrize(
    "id", ["é", "日本", "a b", '"q""q"', "007", "1e3", "NULL", "\u202ex", "🎵"]
)
def test_ids_of_any_kind_come_back_as_they_are(tmp_path, id):
    content = f"\ufeffuser,item\r\n{id},1\r\nb,2\r\n".encode()
    (user, _) = read(tmp_path / "own.csv", content)["user"].cast(pl.String)
    assert user == (id if not id.startswith('"') else 'q"q')


@pytest.mark.parametrize("time", ["1e400", "-inf", "nan", "99999-01-01", "2020-13-01", "yesterday"])
def test_times_out_of_range(tmp_path, time):
    with pytest.raises(UserError, match=r"own.csv, line 2: .* in column 'time'"):
        read(tmp_path / "own.csv", f"user,item,time\n1,2,{time}\n".encode())


def test_mixed_encodings_are_named_with_their_line(tmp_path):
    with pytest.raises(UserError, match=r"own.csv, line 3: the text is not UTF-8"):
        read(tmp_path / "own.csv", "user,item\né,1\n".encode() + "é,2\n".encode("latin-1"))


def test_rows_that_repeat_or_contradict_each_other_are_one_interaction(tmp_path):
    rows = [(u, i, 5, t) for u in range(4) for i in range(3) for t in (1, 2)]
    rows += [(u, 0, 1, 3) for u in range(4)]  # pairs that are there, disliked
    rows += [(5, 3, 5, 1), (5, 3, 5, 1)]
    table = pl.DataFrame(rows, ["user", "item", "rating", "time"], orient="row")
    table.write_csv(tmp_path / "own.csv")
    paths = {"path": str(tmp_path / "own.csv"), "cache_dir": str(tmp_path / "cache")}
    data = schema.Data(**paths, threshold=4.0, split=schema.Split(valid=0.0, test=0.0))
    assert prepare(data).train.nnz == 13


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_nothing_of_a_stranger_is_executed(tmp_path):
    """Neither by matrices and vectors nor by any file of a checkpoint."""
    made = tmp_path / "made"
    np.savez(tmp_path / "own.npz", row=np.array([Touch(made)], object))
    with pytest.raises(UserError):
        readers.read_interactions(tmp_path / "own.npz", "auto", Layout())
    target = {"x": np.arange(3.0)}
    with Checkpoints(tmp_path, writes=True) as checkpoints:
        checkpoints.save(1, target, 0.0)
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(pickle.dumps(Touch(made)))
    with pytest.raises(UserError, match="the metrics of this checkpoint are unreadable"):
        Checkpoints(tmp_path)
    with Checkpoints(tmp_path, writes=True) as checkpoints:
        assert checkpoints.latest(target) is None
    assert (tmp_path / "damaged").exists()
    assert not made.exists()


def test_what_ranks_a_checkpoint_is_damaged(tmp_path):
    target = {"x": np.arange(3.0)}
    with Checkpoints(tmp_path, writes=True) as checkpoints:
        for epoch in (1, 2):
            checkpoints.save(epoch, {"x": epoch + target["x"]}, 0.0)
    (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_bytes(b'{"value"')
    with Checkpoints(tmp_path, writes=True) as checkpoints:
        epoch, state = checkpoints.latest(target)
    assert epoch == 1
    np.testing.assert_array_equal(state["x"], 1 + target["x"])
