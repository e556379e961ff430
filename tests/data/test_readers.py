"""Every format that is promised, and the line that a mistake stands on."""

import datetime
import gzip
import lzma
import zipfile

import numpy as np
import polars as pl
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from hlrcml_jax.data import readers
from hlrcml_jax.data.layout import ItemFile, Layout
from hlrcml_jax.errors import UserError
from hlrcml_jax.registry import FORMATS

PAIRS = [(1, 10, 4.0, 100.0), (1, 11, 3.5, 101.0), (2, 10, 5.0, 102.0)]


def gzipped(content):
    """Packed without the time of day: test names hold the bytes, and must stay the same."""
    return gzip.compress(content, mtime=0)


def read(tmp_path, text, name="data.csv", format="auto", **layout):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return readers.read_interactions(path, format, Layout(**layout))


def rows(table):
    return table.select("user", "item", "value", "time").rows()


@pytest.mark.parametrize(
    ("name", "text", "layout"),
    [
        ("u.data", "1\t10\t4\t100\n1\t11\t3.5\t101\n2\t10\t5\t102\n", {}),
        ("ratings.dat", "1::10::4::100\n1::11::3.5::101\n2::10::5::102\n", {}),
        (
            "ratings.csv",
            "userId,movieId,rating,timestamp\n1,10,4,100\n1,11,3.5,101\n2,10,5,102\n",
            {},
        ),
        (
            "x.inter",
            "item_id:token\tuser_id:token\trating:float\ttimestamp:float\n"
            "10\t1\t4\t100\n11\t1\t3.5\t101\n10\t2\t5\t102\n",
            {},
        ),
        ("own.csv", "\ufeffuser;item;rating;time\r\n1;10;4;100\r\n1;11;3.5;101\r\n2;10;5;102\r\n",
         {"separator": ";"}),
        ("own.txt", "1 10 4 100\n1 11 3.5 101\n\n2 10 5 102", {"separator": " ", "header": False}),
        (
            "own.psv",
            "when||who||what||how\n100||1||10||4\n101||1||11||3.5\n102||2||10||5\n",
            {"separator": "||", "columns": ("who", "what", "how", "0")},
        ),
        (
            "quoted.csv",
            'user,note,item,rating,time\n1,"a,b",10,4,100\n1,"c\nd",11,3.5,101\n2,,10,5,102\n',
            {},
        ),
        (
            "dates.csv",
            "user,item,rating,date\n1,10,4,1970-01-01T00:01:40\n1,11,3.5,1970-01-01T00:01:41\n"
            "2,10,5,1970-01-01T00:01:42\n",
            {},
        ),
    ],
)  # fmt: skip
def test_formats(tmp_path, name, text, layout):
    assert rows(read(tmp_path, text, name, **layout)) == PAIRS


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("adjacency", "7 3 1\n\n8\n9  1 2 \n"),
        ("adjacency", "7\t3 1\n9\t1\t2\n"),
        ("adjacency_counted", "2 3 1\n0\n2 1 2\n"),
    ],
)
def test_adjacency(tmp_path, format, text):
    users = [7, 7, 9, 9] if format == "adjacency" else [0, 0, 2, 2]
    table = read(tmp_path, text, "lists.txt", format)
    assert table.rows() == list(zip(users, [3, 1, 1, 2], strict=True))


def test_matrix(tmp_path):
    dense = np.array([[0, 2.5, 0], [1, 0, 0]])
    scipy.sparse.save_npz(tmp_path / "m.npz", scipy.sparse.csr_array(dense))
    table = readers.read_interactions(tmp_path / "m.npz", "auto", Layout())
    assert table.rows() == [(0, 1, 2.5), (1, 0, 1.0)]


def test_ids_stay_as_written_unless_all_are_plain_integers(tmp_path):
    table = read(tmp_path, "user,item\n007,x\n7,é\n")
    assert table.rows() == [("007", "x"), ("7", "é")]


def test_items(tmp_path):
    path = tmp_path / "u.item"
    path.write_bytes("1|Am\u00e9lie (2001)|x\n2|Se7en|y y\n".encode("latin1"))
    layout = Layout("|", False, ("", "0", "1", ""), "latin-1", section="data.titles")
    found = readers.read_items(ItemFile(path, layout, "2", " ")).sort("id")
    assert found.rows() == [("1", "Amélie (2001)", ["x"]), ("2", "Se7en", ["y", "y"])]
    with pytest.raises(UserError, match=r"u.item, line 1: no column 'genres'.*titles.categories"):
        readers.read_items(ItemFile(path, layout, "genres"))


def test_titles_that_no_column_looks_like(tmp_path):
    (tmp_path / "items.csv").write_text("item,name\n1,One\n")
    with pytest.raises(UserError, match=r"items.csv, line 1: .* the value .*data.titles.value"):
        readers.read_items(ItemFile(tmp_path / "items.csv", Layout(section="data.titles")))


def test_an_empty_matrix_has_no_interactions_also_with_a_threshold(tmp_path):
    scipy.sparse.save_npz(tmp_path / "m.npz", scipy.sparse.csr_array((3, 5)))
    table = readers.read_interactions(tmp_path / "m.npz", "auto", Layout(), threshold=2.0)
    assert table.is_empty()


@pytest.mark.parametrize(
    ("text", "layout", "said"),
    [
        ("", {}, "data.csv: the file is empty"),
        ("user,item,rating\n", {}, "no interactions"),
        ("user;item\n1;2\n", {}, r"line 1: no column that looks like the user.*separator ','"),
        ("a,b\n1,2\n", {"columns": ("a", "c", "", "")}, "line 1: no column 'c' among 'a', 'b'"),
        ("user,item,rating\n1,2,3\n1,3,good\n", {}, "line 3: 'good' in column 'rating'"),
        ("user,item,rating\n1,2,NaN\n", {}, "line 2: 'NaN'"),
        ("user,item,rating\n1,2,\n", {}, "line 2: column 'rating'.*empty"),
        ("user,item,rating\n1,2,3\n\n1,2\n", {}, "line 4: column 'rating'.*empty"),
        ("user,item\n1,2\n3,4,5\n", {}, "line 3: 3 fields where line 1 has 2"),
        ("user,item\n1,2\n-3,4\n", {}, "line 3: the user id -3 is negative"),
        ("user,item\n ,2\n", {}, "line 2: column 'user'.*empty"),
        (b"user,item\n1,2\n\xff,4\n", {}, "line 3: the text is not UTF-8"),
        ("user,item,time\n1,2,yesterday\n3,4,5\n", {}, "line 2: 'yesterday'.*not a time"),
        ('user,item,note\n1,2,"a\nb"\n1,x,"c"\n1,,d\n', {}, "line 5: column 'item'"),
        ("1::2::3\n1::2\n", {"separator": "::", "header": False}, "line 2: 2 fields"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, text, layout, said):
    with pytest.raises(UserError, match=said) as caught:
        read(tmp_path, text, **layout)
    assert "data.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("format", "text", "said"),
    [
        ("adjacency_counted", "2 1 2\n3 1 2\n", "line 2: the count is '3' but 2 items follow"),
        ("adjacency_counted", "x 1 2\n", "line 1: the count is 'x'"),
        ("adjacency", "1 2\n\n3 -4\n", "line 3: the item id -4 is negative"),
        ("npz", "nothing of the kind", "not a scipy sparse matrix"),
    ],
)
def test_mistakes_in_other_formats(tmp_path, format, text, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, text, "lists.txt", format)


def test_a_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", format=np.array([object()]), data=np.array([object()]))
    with pytest.raises(UserError, match="not a scipy sparse matrix"):
        readers.read_interactions(tmp_path / "evil.npz", "auto", Layout())


JSON = '{"user_id": "a", "business_id": "x", "stars": 4.0, "date": "%s", "text": "long", "n": {}}'


def packed(path, content):
    """The content as gzip, xz, zip, or as it is, by the file's ending."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inner.txt", content)
    else:
        opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
        with opener(path, "wb") as file:
            file.write(content)
    return path


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zip"])
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("train_triplets.txt", "u1\ts1\t3\nu2\ts2\t6\n", [("u1", "s1", 3.0), ("u2", "s2", 6.0)]),
        ("ratings_Books.csv", "A1,000X,5.0,9\nA2,000Y,1.0,9\n",
         [("A1", "000X", 5.0), ("A2", "000Y", 1.0)]),
        ("yelp_academic_dataset_review.json", "\n".join([JSON % "2012-02-03 04:05:06"] * 2),
         [("a", "x", 4.0)] * 2),
    ],
)  # fmt: skip
def test_files_of_the_paper_compressed_or_not(tmp_path, name, text, expected, ending):
    path = packed(tmp_path / (name + ending), text.encode())
    table = readers.read_interactions(path, "auto", Layout())
    assert table.select("user", "item", "value").rows() == expected
    assert list(tmp_path.iterdir()) == [path]
    if "yelp" in name:  # seconds of 2012-02-03 04:05:06
        assert table["time"].to_list() == [1328241906.0] * 2


def test_parquet_of_any_types(tmp_path):
    when = [datetime.datetime(1970, 1, 1, 0, 1, 40), datetime.datetime(1970, 1, 1, 0, 1, 41)]
    frame = pl.DataFrame({"item": ["a", "b"], "user": [3, -0], "when": when, "plays": [1, 2]})
    frame.with_columns(tags=[[1], [2]]).write_parquet(tmp_path / "x.parquet")
    layout = Layout(columns=("", "", "", "when"))
    table = readers.read_interactions(tmp_path / "x.parquet", "auto", layout)
    assert table.rows() == [(3, "a", 1.0, 100.0), (0, "b", 2.0, 101.0)]


def test_only_what_is_asked_for_is_read_and_checked(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("user,item,rating,time\n1,2,3,never\n1,3,4,never\n")
    roles = ("user", "item", "value")
    table = readers.read_interactions(path, "auto", Layout(), 3.5, roles)
    assert table["item"].to_list() == [3]
    assert "time" not in table.columns
    with pytest.raises(UserError, match="no value reaches data.threshold=5; the largest is 4"):
        readers.read_interactions(path, "auto", Layout(), 5, roles)
    path.write_text("user,item\n1,2\n")
    with pytest.raises(UserError, match="no column of values"):
        readers.read_interactions(path, "auto", Layout(), 5, roles)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv.gz", b"user,item\n1,2\n", r"x.csv.gz: cannot be unpacked"),
        ("x.csv.xz", b"user,item\n1,2\n", r"x.csv.xz: cannot be unpacked"),
        ("x.csv.zip", b"user,item\n1,2\n", r"x.csv.zip: cannot be unpacked"),
        ("x.csv.gz", gzipped(b"user,item\n1,2\n" * 99)[:-9], "cannot be unpacked"),
        ("x.csv.gz", gzipped(b"user,item\n1,2\n1,\n"), r"x.csv.gz, line 3: column 'item'"),
        ("x.csv.gz", gzipped(b""), r"x.csv.gz: the file is empty"),
        ("x.jsonl", b'{"user": 1, "item": 2}\n{"user": 1,\n', r"x.jsonl, line 2: not JSON"),
        ("x.jsonl", b'{"user": 1, "item": 2}\n{"user": 1}\n', r"x.jsonl, line 2: column 'item'"),
        ("x.parquet", b"PAR1nothing", r"x.parquet: not readable as parquet"),
    ],
)
def test_mistakes_in_files_of_other_kinds(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        readers.read_interactions(path, "auto", Layout())


def test_an_archive_of_several_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "user,item\n1,2\n")
        archive.writestr("../b.csv", "user,item\n1,2\n")
    with pytest.raises(UserError, match=r"two.zip: it holds 2 files"):
        readers.read_interactions(tmp_path / "two.zip", "auto", Layout())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([",", "\t", "::", " "]), st.booleans())
def test_any_bytes_give_a_table_or_one_sentence(tmp_path_factory, content, separator, header):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    for format in FORMATS:
        try:
            table = readers.read_interactions(path, format, Layout(separator, header))
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert {"user", "item"} <= set(table.columns)
            assert table.null_count().sum_horizontal()[0] == 0
