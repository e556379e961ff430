"""Files as people bring them: each gives the right table, or one sentence that says what to do."""

import dataclasses
import datetime
import gzip
import json
import os

import numpy as np
import polars as pl
import pytest
import scipy.sparse

from hlrcml_jax import keys, schema
from hlrcml_jax.data import downloads, readers
from hlrcml_jax.data.layout import ItemFile, Layout
from hlrcml_jax.data.prepare import prepare
from hlrcml_jax.errors import MAX_SENTENCE, UserError
from hlrcml_jax.reporting import console

AT = 1508574042.0  # 2017-10-21 08:20:42 UTC
BIG = 9007199254740993  # 2^53 + 1, which no float is


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def read(tmp_path, name, content, **layout):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return readers.read_interactions(path, "auto", Layout(**layout))


def refused(said, call, *args, **options):
    with pytest.raises(UserError, match=said) as caught:
        call(*args, **options)
    assert len(str(caught.value)) <= MAX_SENTENCE
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2017-10-21T08:20:42Z", AT),
        ("2017-10-21T08:20:42", AT),
        ("2017-10-21 08:20:42", AT),
        ("2017-10-21 08:20:42 UTC", AT),
        ("2017-10-21t08:20:42z", AT),
        ("2017-10-21T13:50:42+05:30", AT),
        ("2017-10-21T13:50:42+0530", AT),
        ("2017-10-21T13:20:42+05", AT),
        ("2017-10-21 00:20:42.000-08:00", AT),
        ("2017-10-21T08:20:42.250Z", AT + 0.25),
        ("2017-10-21T08:20:42,5", AT + 0.5),
        ("2017-10-21T08:20:42.123456789Z", AT + 0.123456789),
        ("2017-10-21T08:20Z", AT - 42),
        ("2017/10/21 08:20:42", AT),
        ("2017-10-21", AT - (8 * 3600 + 20 * 60 + 42)),
        ("1969-12-31T23:59:59Z", -1.0),
    ],
)
def test_dates_are_read_to_their_instant_also_beside_others(tmp_path, text, seconds):
    table = read(
        tmp_path, "own.csv", f"user;item;time\n1;2;{text}\n1;3;1970-01-02\n", separator=";"
    )
    assert table["time"].to_list() == pytest.approx([seconds, 86400.0], abs=1e-6)
    table = read(tmp_path, "own.jsonl", lines({"user": 1, "item": 2, "created_at": text}))
    assert table["time"].to_list() == pytest.approx([seconds], abs=1e-6)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["2017-10-21", "1508574042"], "line 3: '1508574042'.*not a time.*other rows hold dates"),
        (["1508574042", "2017-10-21T08:20:42Z"], "line 2: '1508574042'"),
        (["2017-02-30"], "line 2: '2017-02-30'"),
        (["2017-10-21T25:00:00Z"], "line 2: '2017-10-21T25"),
        (["21/10/2017"], "line 2: '21/10/2017'"),  # may be of two months
        (["2017-10-21T08:20:42+5"], "line 2"),
        (["12:30"], "line 2: '12:30'"),
    ],
)
def test_what_is_no_time_is_named(tmp_path, texts, said):
    rows = "".join(f"{row},2,{text}\n" for row, text in enumerate(texts))
    refused(f"own.csv, {said}", read, tmp_path, "own.csv", f"user,item,time\n{rows}")


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([datetime.datetime(2017, 10, 21, 8, 20, 42)], pl.Datetime("ns"), AT),
        ([datetime.datetime(2017, 10, 21, 8, 20, 42)], pl.Datetime("ms", "Asia/Kolkata"), AT),
        ([datetime.date(2017, 10, 21)], pl.Date, AT - 30042),
        ([datetime.timedelta(hours=1)], pl.Duration, 3600.0),
        ([datetime.time(1)], pl.Time, 3600.0),
        ([AT], pl.Float64, AT),
        ([int(AT)], pl.Int32, AT),
        (["2017-10-21T13:50:42+05:30"], pl.String, AT),
    ],
)
def test_times_in_parquet(tmp_path, values, dtype, expected):
    time = pl.Series(values, dtype=None if "Asia" in str(dtype) else dtype)
    time = time.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Kolkata") if (
        "Asia" in str(dtype)
    ) else time  # fmt: skip
    pl.DataFrame({"user": [1], "item": [2], "time": time}).write_parquet(tmp_path / "own.parquet")
    table = readers.read_interactions(tmp_path / "own.parquet", "auto", Layout())
    assert table["time"].to_list() == [expected]


JSON = [
    # An unused field that changes its type after any sample; a field that begins late.
    (lines(*[{"user": 1, "item": 2, "price": 10}] * 120, {"user": 1, "item": 3, "price": "x"}),
     {(1, 2), (1, 3)}),
    (lines(*[{"user": 1, "item": 2}] * 1500, {"user": 1, "item": 3, "rating": 4}),
     "line 1: column 'rating'.*is empty"),
    (lines(*[{"user": 1}] * 1100, {"user": 1, "item": 3}), "line 1: column 'item' .*is empty"),
    # Numbers keep their digits, and whole fractions are integers.
    (lines({"user": 1.5, "item": 1}, {"user": BIG, "item": 1}), {("1.5", 1), (str(BIG), 1)}),
    (lines({"user": BIG, "item": 1}, {"user": BIG - 1, "item": 1}), {(BIG, 1), (BIG - 1, 1)}),
    (lines({"user": 2**64, "item": 1}, {"user": 7, "item": 1}), {(str(2**64), 1), ("7", 1)}),
    (lines({"user": 12.0, "item": 1}, {"user": 12, "item": 2}), {(12, 1), (12, 2)}),
    (lines({"user": "007", "item": 1}, {"user": 7, "item": 2}), {("007", 1), ("7", 2)}),
    (lines({"user": "é\n", "item": "a\"b"}), {("é", 'a"b')}),
    ("\ufeff" + lines({"user": 1, "item": 2}), {(1, 2)}),
    ('{"user":1,"item":2}\r\n\r\n{"item":3,"user":1}', {(1, 2), (1, 3)}),
    (lines({"user": 1, "item": 2}).encode("utf-16"), {(1, 2)}),
    # Nested fields of a usual name are not the column.
    (lines({"user": {"id": 9}, "user_id": 1, "item": 2}), {(1, 2)}),
    (lines(*[{"user": 1, "item": 2, "n": {"rating": 1}}] * 1100), {(1, 2)}),
    (lines({"user": 1, "item": 2}, {"user": [1], "item": 2}), r"line 2: \[1\] in field 'user'"),
    (lines({"user": 1, "item": {}}), "no column that looks like the item among 'user'"),
    ('{"user": 1, "item": ' + "[" * 10**5 + "\n", "line 1: not JSON.*nested too deeply"),
    ('{"user": 1, "item": 2, "x": ' + "[" * 1500 + "]" * 1500 + "}\n", "own.jsonl"),
    ('[{"user": 1, "item": 2}]\n', "line 1: not a JSON object"),
    ('[\n{"user": 1, "item": 2}\n]\n', "line 1: not JSON.*one array"),
    ('{"user": 1, "item": 2}\n\n3\n', "line 3: not a JSON object"),
    ('{"user": NaN, "item": 2}\n', "line 1: not JSON"),
    ('{"user": 1e400, "item": 2}\n', "line 1: not JSON .1e400 is too large"),
    ('{"user": 1' + "0" * 400 + ', "item": 2}\n', "own.jsonl"),
    ('{"user": "\\ud83c\\udfb5", "item": 2}\n', {("\U0001f3b5", 2)}),
    ('{"user": "\\ud800", "item": 2}\n', "line 1: .*in field 'user' has half of a surrogate pair"),
    ('{"user": 1, "item": 2, "x": "\\ud800"}\n', {(1, 2)}),
    ('{"user": 1, "item": 2}\n{"user": 3, "x": "\\udc00"}\n', "line 2: its text has half"),
    ('{"user": 1, "item": 2}{"user": 1, "item": 3}\n', "line 1: not JSON .Extra data"),
    (lines({f"k{i}": i for i in range(3000)}), "user among 'k0', .* and 2,994 more"),
    ('\n{"user": 1, "item": null}\n', "line 2: column 'item' .*is empty"),
    (b'{"user": "\xe9", "item": 2}\n', "line 1: the text is not UTF-8.*data.encoding.*cp1252"),
    (lines(), "the file is empty"),
    (lines({}), "no column that looks like the user"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), JSON, ids=range(len(JSON)))
def test_json_lines(tmp_path, content, expected):
    if isinstance(expected, str):
        refused(f"own.jsonl.*{expected}|{expected}", read, tmp_path, "own.jsonl", content)
    else:
        table = read(tmp_path, "own.jsonl", content).select("user", "item")
        assert set(table.cast({pl.Categorical: pl.String}).rows()) == expected


IDS = [
    (["12", "7"], [12, 7]),
    (["12", "12.0"], [12, 12]),
    (["12.0", "7.00"], [12, 7]),
    (["12.000000", "7"], [12, 7]),
    (["12.0", "7.5"], ["12.0", "7.5"]),
    (["012", "12"], ["012", "12"]),
    (["0", "00"], ["0", "00"]),
    (["-0", "0"], ["-0", "0"]),
    ([str(2**63 - 1), "1.0"], [2**63 - 1, 1]),
    ([str(2**63), "1"], [str(2**63), "1"]),
    (["1e3", "1000"], ["1e3", "1000"]),
    (["+5", "5"], ["+5", "5"]),
    (["²", "2"], ["²", "2"]),
    ([" 5", "5 "], [5, 5]),
]


@pytest.mark.parametrize(("texts", "expected"), IDS)
def test_ids_are_integers_all_or_none(tmp_path, texts, expected):
    content = "user,item\n" + "".join(f"{text},1\n" for text in texts)
    found = read(tmp_path, "own.csv", content)["user"]
    assert (
        found.cast(pl.String if found.dtype == pl.Categorical else pl.Int64).to_list() == expected
    )
    listing = "".join(f"{text.strip()} 1\n" for text in texts)
    (tmp_path / "own.txt").write_text(listing)
    found = readers.read_interactions(tmp_path / "own.txt", "adjacency", Layout())
    assert found["user"].to_list() == expected


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (pl.Series([12.0, 7.0]), [12, 7]),
        (pl.Series([12.0, 7.5]), ["12", "7.5"]),
        (pl.Series([float(2**60), 1.0]), [2**60, 1]),
        (pl.Series([1.0, float("nan")]), "own.parquet, row 2: column 'user' .*is empty"),
        (pl.Series([float("nan")] * 2), "own.parquet, row 1: column 'user' .*is empty"),
        (pl.Series([1, None]), "own.parquet, row 2: column 'user' .*is empty"),
        (pl.Series(["012", "12"], dtype=pl.Categorical), ["012", "12"]),
        (pl.Series([2**64 - 1, 1], dtype=pl.UInt64), [str(2**64 - 1), "1"]),
        (pl.Series(["12.00", "7.00"]).cast(pl.Decimal(10, 2)), [12, 7]),
        (pl.Series([-1, 1]), "own.parquet, row 1: the user id -1 is negative"),
        (pl.Series([b"\xff", b"a"]), "own.parquet"),
        (pl.Series([[1], [2]]), "no column that looks like the user among 'item'"),
    ],
)
def test_ids_in_parquet(tmp_path, series, expected):
    pl.DataFrame({"user": series, "item": [1, 2]}).write_parquet(tmp_path / "own.parquet")
    path = tmp_path / "own.parquet"
    if isinstance(expected, str):
        refused(expected, readers.read_interactions, path, "auto", Layout())
    else:
        found = readers.read_interactions(path, "auto", Layout())["user"]
        found = found.cast(pl.String) if found.dtype == pl.Categorical else found
        assert found.to_list() == expected


LATIN = "user,item\né,1\nb,2\n"
DELIMITED = [
    # Quotes: a field that does not begin with one is as it is.
    ('user,item\nu,12" vinyl\nv,7" single\n', {}, {("u", '12" vinyl'), ("v", '7" single')}),
    ('user,item,name\nu,1,12" vinyl\nv,2,"a, ""b"""\n', {}, {("u", 1), ("v", 2)}),
    ('user,item,name\nu,1,12" vinyl\nv,2,"a\nb"\nw,,\n', {}, "line 5: column 'item'"),
    ('user,item\nu,a "b" c\n', {}, {("u", 'a "b" c')}),
    ('user,item\nu,"a ""b"" c"\n', {}, {("u", 'a "b" c')}),
    ('user,item\nu,"12" vinyl\n', {}, r"line 2: a field begins with \".*data.quote=''"),
    ('user,item\nu,1\nv,"never closed\nw,2\n', {}, r"line 3: a field begins with \".*data.quote"),
    ('user,item\nu,"12" vinyl\n', {"quoting": ""}, {("u", '"12" vinyl')}),
    ("user,item\nu,'a,b'\n", {"quoting": "'"}, {("u", "a,b")}),
    ("user,item\nu,it's\nv,'a,b'\n", {"quoting": "'"}, {("u", "it's"), ("v", "a,b")}),
    ('user\titem\nu\t12" vinyl\n', {"separator": "\t"}, {("u", '12" vinyl')}),
    ('user\titem\nu\t"a\tb"\n', {"separator": "\t", "quoting": '"'}, {("u", "a\tb")}),
    ('user,item\nu,12" a, b"\n', {}, "line 2: 3 fields where line 1 has 2"),
    ('"user","item"\r\n"u","1"\r\n', {}, {("u", 1)}),
    ('us"er,item\nu,1\n', {"columns": ('us"er', "item", "", "")}, {("u", 1)}),
    ("user；item\nu；1\n", {"separator": "；"}, {("u", 1)}),
    # Encodings.
    (LATIN.encode("utf-16"), {}, {("é", 1), ("b", 2)}),
    (b"\xfe\xff" + LATIN.encode("utf-16-be"), {}, {("é", 1), ("b", 2)}),
    (LATIN.encode("utf-32"), {}, {("é", 1), ("b", 2)}),
    (LATIN.encode("utf-8-sig"), {}, {("é", 1), ("b", 2)}),
    (LATIN.encode("latin-1"), {"encoding": "latin-1"}, {("é", 1), ("b", 2)}),
    (LATIN.encode("utf-16-le"), {"encoding": "utf-16-le"}, {("é", 1), ("b", 2)}),
    (LATIN.encode("utf-16-le"), {}, "not UTF-8; set data.encoding, probably to utf-16-le"),
    (LATIN.encode("utf-16-be"), {}, "not UTF-8; set data.encoding, probably to utf-16-be"),
    (LATIN.encode("latin-1"), {}, "line 2: the text is not UTF-8; .*data.encoding.*cp1252"),
    (b"user,item\n\x81,1\n", {}, "line 2: the text is not UTF-8; .*data.encoding.*latin-1"),
    (LATIN.encode(), {"encoding": "ascii"}, "the text is not ascii; set data.encoding"),
    (LATIN.encode("utf-16")[:-1], {}, "it begins as utf-16 and goes on as another text"),
    (b"\xef\xbb\xbf", {}, "the file is empty"),
    # Headers, line ends and long rows.
    ("user,item\r1,2\r1,3", {}, {(1, 2), (1, 3)}),
    (" user , item\n1, 2\n", {}, {(1, 2)}),
    ("ns:user,ns:item\n1,2\n", {}, "no column that looks like the user among 'ns:user', 'ns:item'"),
    ("ns:user,ns:item\n1,2\n", {"columns": ("ns:user", "ns:item", "", "")}, {(1, 2)}),
    ("user:token,item:token\n1,2\n", {}, {(1, 2)}),
    (",".join(f"f{i}" for i in range(3000)) + "\n1,2\n", {}, "'f0', .* and 2,994 more"),
    ("x" * 10**5 + "\n1\n", {}, "line 1: no column that looks like the user"),
    ("user,item,rating\n1,2," + "9x" * 10**5 + "\n", {}, "line 2: '9x9x.*is not a number"),
    ("user,item\n1,2\n" + "3," * 10**5 + "\n", {}, "line 3: 100001 fields where line 1 has 2"),
    ("user,item\n1,2\n", {"columns": ("²", "item", "", "")}, "no column '²'"),
    ("user,item\n1,2\n", {"columns": ("9" * 5000, "item", "", "")}, "no column '999"),
]


@pytest.mark.parametrize(("content", "layout", "expected"), DELIMITED, ids=range(len(DELIMITED)))
def test_delimited_text(tmp_path, content, layout, expected):
    if isinstance(expected, str):
        said = refused(expected, read, tmp_path, "own.csv", content, **layout)
        assert "own.csv" in said
    else:
        table = read(tmp_path, "own.csv", content, **layout).select("user", "item")
        assert set(table.cast({pl.Categorical: pl.String}).rows()) == expected


@pytest.mark.parametrize(
    "header",
    [
        "User-ID;ISBN;Book-Rating;time",
        "reviewerID;asin;overall;unixReviewTime",
        "user_id;product_id;rating;purchased_at",
        "UserId;parent_asin;rating;created_at",
        "visitorid;itemid;value;event_time",
        "Customer ID;StockCode;count;InvoiceDate",
        "uid;movie_id;score;eventTimestamp",
        "user.id;item.id;Stars;ts",
    ],
)
def test_usual_names(tmp_path, header):
    table = read(tmp_path, "own.csv", f"{header}\n1;2;3;4\n", separator=";")
    assert table.row(0) == (1, 2, 3.0, 4.0)


@pytest.mark.parametrize("name", ["plays[12].csv", "p*.csv", "p?.jsonl", "{a,b}.parquet", "[.csv"])
def test_a_file_name_is_no_pattern(tmp_path, name):
    folder = tmp_path / "a[b]*"
    folder.mkdir()
    for other in ("plays1.csv", "pa.csv", "pa.jsonl", "a.parquet"):
        (folder / other).write_text("user,item\n9,9\n")
    table = pl.DataFrame({"user": [1], "item": [2]})
    kind = name.rpartition(".")[2]
    {"csv": table.write_csv, "jsonl": table.write_ndjson, "parquet": table.write_parquet}[kind](
        folder / name
    )
    assert readers.read_interactions(folder / name, "auto", Layout()).rows() == [(1, 2)]
    (folder / name).write_bytes(b"\xff\xff")
    said = refused(r"\[b\]", readers.read_interactions, folder / name, "auto", Layout())
    assert said.startswith(str(folder / name))


def csr(**changes):
    good = {
        "format": np.array(b"csr"),
        "shape": np.array([2, 3]),
        "data": np.array([1.0, 2.0]),
        "indices": np.array([1, 2], np.int32),
        "indptr": np.array([0, 1, 2], np.int32),
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


MATRICES = [
    (csr(), {(0, 1, 1.0), (1, 2, 2.0)}),
    (csr(format=np.array("csc"), indptr=np.array([0, 0, 1, 2]), indices=np.array([0, 1])),
     {(0, 1, 1.0), (1, 2, 2.0)}),
    (csr(format=np.array(b"coo"), row=np.array([0, 1]), col=np.array([1, 2])),
     {(0, 1, 1.0), (1, 2, 2.0)}),
    (csr(data=np.array([True, True])), {(0, 1, 1.0), (1, 2, 1.0)}),
    (csr(indices=np.array([1, 3])), "column index 3 is outside of 0 to 2"),
    (csr(indices=np.array([1, -1])), "column index -1 is outside"),
    (csr(indices=np.array([1, 10**6])), "column index 1000000 is outside"),
    (csr(indices=np.array([1, 2**62])), "column index"),
    (csr(indices=np.array([1.0, 2.0])), "its indices has the type float64"),
    (csr(indices=np.array([1])), "its indices has 1 entries for 2 values"),
    (csr(indptr=np.array([0, 10**6, 2])), "its indptr decreases"),
    (csr(indptr=np.array([0, 1])), "its indptr does not fit 2 csr rows"),
    (csr(indptr=np.array([0, 1, 3])), "its indptr does not fit"),
    (csr(indptr=np.array([1, 1, 2])), "its indptr does not fit"),
    (csr(indptr=None), "indptr"),
    (csr(data=np.array([1.0, np.nan])), "value 1 is nan"),
    (csr(data=np.array([np.inf, 1.0])), "value 0 is inf"),
    (csr(data=np.array([1j, 2.0])), "the type complex128"),
    (csr(data=np.array(["1", "2"])), "the type <U1"),
    (csr(data=np.ones((2, 2))), "2 dimensions"),
    (csr(shape=np.array([2])), r"its shape is \(2,\)"),
    (csr(shape=np.array([2, -3])), "its shape is"),
    (csr(shape=np.array([2, 2**40])), "its shape is"),
    (csr(shape=np.array([2.0, 3.0])), "its shape has the type float64"),
    (csr(format=np.array(b"coo"), row=np.array([0, 2]), col=np.array([1, 2])), "row index 2"),
    (csr(format=np.array(b"dia")), "its format is 'dia'"),
    (csr(format=np.array([1, 2])), "not a scipy sparse matrix"),
    ({"x": np.zeros(3)}, "not a scipy sparse matrix"),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "expected"), MATRICES, ids=range(len(MATRICES)))
def test_matrices(tmp_path, arrays, expected):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    if isinstance(expected, str):
        assert "own.npz" in refused(expected, readers.read_interactions, path, "auto", Layout())
    else:
        assert set(readers.read_interactions(path, "auto", Layout()).rows()) == expected


# Whole data sets: files that belong together.


def prepared(tmp_path, **values):
    data = schema.Data(cache_dir=str(tmp_path / "cache"))
    named = {name.replace("__", "."): value for name, value in values.items()}
    return prepare(keys.replaced(data, named))


def given(tmp_path, **contents):
    """The keys of a given split with these (user, item) texts, in files of this kind."""
    values = {"split__kind": "given"}
    for part, rows in contents.items():
        path = tmp_path / f"{part}.csv"
        path.write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in rows))
        values[f"split__{part}_path"] = str(path)
    return values


TRAIN = [("1", "10"), ("2", "20"), ("12", "10")]


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ([("12", "20")], ([1, 2, 12], 0)),
        ([("12.0", "20.0")], ([1, 2, 12], 0)),
        ([("00012", "20"), ("1", "20")], (["00012", "1", "12", "2"], 1)),
        ([("x", "20"), ("1", "20")], (["1", "12", "2", "x"], 0)),
        ([("x", "20"), ("12.0", "20"), ("1", "20")], (["1", "12", "12.0", "2", "x"], 1)),
        ([("00012", "20")], "test.csv: none of its users is in .*'00012' here, '1' there"),
        ([("1", "99")], "test.csv: none of its items is in .*'99' here, '10' there"),
    ],
)
def test_ids_of_the_parts_of_a_split(tmp_path, test, expected):
    values = given(tmp_path, train=TRAIN, valid=[("2", "10")], test=test)
    if isinstance(expected, str):
        refused(expected, prepared, tmp_path, **values)
    else:
        dataset = prepared(tmp_path, **values)
        assert (dataset.user_ids.to_list(), len(dataset.account.warnings)) == expected
        assert dataset.account == prepared(tmp_path, **values).account  # from the cache


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("item, title\n0 , Zero\n1 ,One \n", ["Zero", "One"]),
        ("item,title\n0.0,Zero\n01,One\n", ["Zero", "One"]),
        ("item,title\n1,One\n", ["0", "One"]),
        ('item,title\n0,12" vinyl\n', ['12" vinyl', "1"]),
        ("\ufeffitem,title\n0,Zéro\n".encode("utf-16"), ["Zéro", "1"]),
        ("item,title\nx,Zero\n", "titles.csv: none of its ids .'x'. is an item .*'0'"),
        ("item,title\n", "titles.csv: none of its ids .it is empty."),
        ("item,title\n0,Z\xe9ro\n".encode("latin-1"), "line 2.*data.titles.encoding.*cp1252"),
        ('item,title\n0,"12" vinyl\n', "line 2: a field begins.*data.titles.quote=''"),
        ("id,name\n0,Zero\n", "no column that looks like the item among 'id', 'name'.*titles.item"),
        (b"", "titles.csv: the file is empty"),
    ],
)
def test_titles(tmp_path, content, expected):
    path = tmp_path / "own.csv"
    path.write_text("user,item\n" + "".join(f"{user},{user % 2}\n" for user in range(9)))
    titles = tmp_path / "titles.csv"
    titles.write_bytes(content if isinstance(content, bytes) else content.encode())
    values = {"path": str(path), "titles__path": str(titles)}
    if isinstance(expected, str):
        refused(expected, prepared, tmp_path, **values)
    else:
        assert prepared(tmp_path, **values).titles.to_list() == expected


@pytest.mark.parametrize("key", ["path", "titles__path", "split__test_path"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing", "NUL", "home"])
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, key, kind):
    values = given(tmp_path, train=TRAIN, valid=[], test=[])
    if not key.startswith("split"):
        values = {"path": values["split__train_path"]}
    path = {"device": "/dev/zero", "NUL": "a\0b", "home": "~nobody-of-this-name/x"}.get(kind)
    path = path or str(tmp_path / "named.csv")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        (tmp_path / "named.csv").mkdir()
    said = {"pipe": "pipe or device", "device": "pipe or device", "folder": "a folder",
            "missing": "No such file", "NUL": "null", "home": "home"}[kind]  # fmt: skip
    refused(said, prepared, tmp_path, **(values | {key: path}))


def test_a_part_without_anybody_of_training_is_warned_of(tmp_path):
    path = tmp_path / "own.csv"
    rows = [(user, item, user) for user in range(8) for item in range(5) if user % 5 != item]
    pl.DataFrame(rows, ["user", "item", "time"], orient="row").write_csv(path)
    values = {"split__kind": "time", "split__valid": 0.0, "split__test": 0.5}
    warnings = prepared(tmp_path, path=str(path), **values).account.warnings
    assert warnings == ("no user of the test part of the split is in its training part.",)


def test_what_each_step_took_away_is_kept_with_the_data(tmp_path, capsys):
    rows = [(user, item, 5) for user in range(6) for item in range(5)]
    rows += [(0, 0, 5), (0, 1, 4), (7, 8, 5), (9, 9, 1), (0, 2, 1)]
    path = tmp_path / "own.csv"
    pl.DataFrame(rows, ["user", "item", "rating"], orient="row").write_csv(path)
    values = {"path": str(path), "threshold": 2.0, "min_per_user": 2, "split__keep": 0.5}
    said = [
        "data.threshold=2.0 removed 2 rows, 1 user, 1 item",
        "merging duplicates removed 2 rows",
        "data.min_per_user=2 and data.min_per_item=0 removed 1 row, 1 user, 1 item",
        "data.split.keep=0.5 in the training part removed 9 rows",
    ]
    for _ in range(2):  # the second time from the cache
        steps = list(map(str, prepared(tmp_path, **values).account.steps))
        assert [step.split(", 0")[0] for step in steps[:3]] == said[:3]
        assert steps[3].startswith(said[3])
    console.print_prepared(prepared(tmp_path, **values))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "columns: user=user, item=item, value=rating"
    assert out[1:5] == steps
    assert out[5].startswith("Ready: 6 users, 5 items")


def test_steps_of_a_given_split_name_their_file(tmp_path):
    values = given(tmp_path, train=[*TRAIN, TRAIN[0]], valid=[("2", "10")], test=[("1", "20")])
    steps = prepared(tmp_path, **values).account.steps
    assert list(map(str, steps)) == ["merging duplicates in train.csv removed 1 row"]


def test_warnings_are_printed_as_they_are(tmp_path, capsys):
    path = tmp_path / "own.csv"
    path.write_text("user,item\n012,1\n12,2\n1,2\n[/b],3\n")
    console.print_prepared(prepared(tmp_path, path=str(path)))
    assert "user ids differ only in leading zeros or in '.0', like '012', '12' (1 such" in (
        capsys.readouterr().err
    )


def test_an_item_file_is_read_as_interactions_are(tmp_path):
    path = tmp_path / "i[1].csv"
    path.write_bytes("item,title,kinds\r0,Zéro,a|b\r".encode("utf-16"))
    found = readers.read_items(
        ItemFile(path, Layout(section="data.titles", columns=("", "", "title", "")), "kinds")
    )
    assert found.rows() == [("0", "Zéro", ["a", "b"])]


def test_the_items_of_every_catalogue_entry_are_found(tmp_path):
    """By the column names, indices and separators that the files of the data set have."""
    rows = {
        "u.item": "1|Toy Story (1995)|01-Jan-1995||url|0|1\n",
        "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\t"
        "class:token_seq\n1\tToy Story (1995)\t1995\tAnimation Comedy\n",
        "movies.dat": "1::Toy Story (1995)::Animation|Comedy\n",
        "movies.csv": "movieId,title,genres\n1,Toy Story (1995),Animation|Comedy\n",
    }
    seen = set()
    for entry in downloads.CATALOG.values():
        for _, content in entry.sources:
            name = content.items.path.name
            (tmp_path / name).write_text(rows[name])
            file = dataclasses.replace(content.items, path=tmp_path / name)
            table = readers.read_items(file)
            assert table.select("id", "title").row(0) == ("1", "Toy Story (1995)")
            if file.categories:
                assert table["categories"][0].to_list() == ["Animation", "Comedy"]
            seen.add(name)
    assert seen == set(rows)


def test_text_that_begins_like_a_compressed_file(tmp_path):
    """Which polars tells by its first bytes, whatever its name."""
    table = read(tmp_path, "own.csv", 'x^2,user,item\n0,1,2\n0,3,4" vinyl\n')
    assert table["item"].cast(pl.String).to_list() == ["2", '4" vinyl']
    packed = gzip.compress(b"user,item\n1,2\n")
    refused(r"own.csv: it begins like a compressed file", read, tmp_path, "own.csv", packed)
    refused(r"own.jsonl: it begins like a compressed", read, tmp_path, "own.jsonl", packed)


@pytest.mark.parametrize("column", ["^user$", "*", "row", "blank", "n", "^.*$"])
def test_names_that_polars_would_take_for_patterns_or_its_own(tmp_path, column):
    """As the column that is read, and as one that is not."""
    names = [column, "item", "user"]
    csv = ",".join(names) + "\n1,2,3\n\n4,5,6\n"
    records = [dict(zip(names, row, strict=True)) for row in ((1, 2, 3), (4, 5, 6))]
    pl.DataFrame(records).write_parquet(tmp_path / "own.parquet")
    parquet = (tmp_path / "own.parquet").read_bytes()
    for name, content, layout in (
        ("own.csv", csv, {}),
        ("own.dat", csv.replace(",", "::").replace("\n\n", "\n"), {"separator": "::"}),
        ("own.jsonl", lines(*records), {}),
        ("own.parquet", parquet, {}),
    ):
        table = read(tmp_path, name, content, **layout)
        assert table.select("user", "item").rows() == [(3, 2), (6, 5)]
        table = read(tmp_path, name, content, columns=(column, "", "", ""), **layout)
        assert table.select("user", "item").rows() == [(1, 2), (4, 5)]
    (tmp_path / "titles.csv").write_text(csv)
    found = readers.read_items(
        ItemFile(tmp_path / "titles.csv", Layout(columns=("", "1", column, "")))
    )
    assert sorted(found["title"]) == ["1", "4"]


def test_a_type_behind_a_colon_is_recboles_only(tmp_path):
    table = read(tmp_path, "a.csv", "user_id,product,item:color,time:zone\n1,2,red,UTC\n")
    assert table.rows() == [(1, 2)]
    assert read(tmp_path, "b.csv", "user_id:token,item_id:token\n1,2\n").rows() == [(1, 2)]


@pytest.mark.parametrize("zone", ["+99:99", "+05:75", "+24:00", "-05:60", "+٠٥:30"])
def test_zones_that_are_none(tmp_path, zone):
    rows = f"user,item,time\n1,2,2017-10-21T08:20:42{zone}\n"
    refused(r"own.csv, line 2: .*in column 'time'", read, tmp_path, "own.csv", rows)


def test_a_matrix_far_larger_than_its_entries_is_refused_before_it_is_built(tmp_path):
    path = tmp_path / "huge.npz"
    empty = scipy.sparse.coo_array(([1.0], ([0], [0])), shape=(2**31 - 1, 5))
    scipy.sparse.save_npz(path, empty)
    refused(
        r"huge.npz.*shape is \(2147483647, 5\) for 1 entries",
        readers.read_interactions,
        path,
        "auto",
        Layout(),
    )


def as_parquet(path):
    pl.DataFrame({"user": [1], "item": [2]}).write_parquet(path)


def as_matrix(path):
    with path.open("wb") as file:
        scipy.sparse.save_npz(file, scipy.sparse.coo_array(([1.0], ([1], [2])), shape=(3, 3)))


def as_json_lines(path):
    content = lines({"user": 1, "item": 2}).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".GZ" else content)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("A.JSONL", as_json_lines),
        ("a.Json", as_json_lines),
        ("A.JSONL.GZ", as_json_lines),
        ("A.PARQUET", as_parquet),
        ("a.pq", as_parquet),
        ("A.NPZ", as_matrix),
    ],
)
def test_endings_go_in_capitals_too(tmp_path, name, write):
    write(tmp_path / name)
    table = readers.read_interactions(tmp_path / name, "auto", Layout())
    assert table.select("user", "item").rows() == [(1, 2)]
