"""Every format that is promised, and the line that a mistake stands on."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from hlrcml_jax.data import readers
from hlrcml_jax.data.readers import Layout
from hlrcml_jax.errors import UserError

PAIRS = [(1, 10, 4.0, 100.0), (1, 11, 3.5, 101.0), (2, 10, 5.0, 102.0)]


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


def test_titles(tmp_path):
    path = tmp_path / "u.item"
    path.write_bytes("1|Am\u00e9lie (2001)|x\n2|Se7en|y\n".encode("latin1"))
    layout = Layout("|", False, ("", "0", "1", ""))
    assert readers.read_titles(path, layout, "latin1") == {"1": "Amélie (2001)", "2": "Se7en"}


@pytest.mark.parametrize(
    ("text", "layout", "said"),
    [
        ("", {}, "data.csv: the file is empty"),
        ("user,item,rating\n", {}, "no interaction below"),
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


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([",", "\t", "::", " "]), st.booleans())
def test_any_bytes_give_a_table_or_one_sentence(tmp_path_factory, content, separator, header):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    for format in ("delimited", "adjacency", "adjacency_counted", "npz"):
        try:
            table = readers.read_interactions(path, format, Layout(separator, header))
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert {"user", "item"} <= set(table.columns)
            assert table.null_count().sum_horizontal()[0] == 0
