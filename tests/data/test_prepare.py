"""From files to a data set, the cache, the catalogue and the generator."""

import concurrent.futures
import hashlib
import itertools
import mmap
import os
import shutil
import zipfile

import numpy as np
import pytest
import scipy.sparse

from hlrcml_jax import keys, schema
from hlrcml_jax.data import downloads as catalog
from hlrcml_jax.data import synthetic
from hlrcml_jax.data.dataset import PARTS
from hlrcml_jax.data.prepare import prepare
from hlrcml_jax.errors import UserError
from hlrcml_jax.reporting.console import print_account


def options(tmp_path, **changes):
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return keys.replaced(schema.Data(cache_dir=str(tmp_path / "cache")), values)


@pytest.fixture
def own_file(tmp_path):
    table = synthetic.generate(50, 40, 1500)
    path = tmp_path / "own.csv"
    table.write_csv(path)
    return path


def test_parts_are_disjoint_and_complete(tmp_path, own_file):
    dataset = prepare(options(tmp_path, path=str(own_file)))
    total = sum(getattr(dataset, part).astype(int) for part in PARTS)
    assert total.max() == 1
    lines = own_file.read_text().splitlines()[1:]
    pairs = {tuple(map(int, line.split(",")[:2])) for line in lines}
    users, items = total.nonzero()
    found = zip(dataset.user_ids.gather(users), dataset.item_ids.gather(items), strict=True)
    assert set(found) == pairs


def test_training_can_be_thinned_alone(tmp_path, own_file):
    whole = prepare(options(tmp_path, path=str(own_file)))
    thin = prepare(options(tmp_path, path=str(own_file), split__keep=0.25))
    assert thin.train.nnz == round(0.25 * whole.train.nnz)
    assert (thin.valid != whole.valid).nnz == (thin.test != whole.test).nnz == 0
    assert thin.user_ids.equals(whole.user_ids)
    assert thin.item_ids.equals(whole.item_ids)


def flip_a_bit(folder):
    path = folder / "train.indices.npy"
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "a cut file": lambda folder: os.truncate(folder / "users.parquet", 100),
    "a missing file": lambda folder: (folder / "valid.indptr.npy").unlink(),
    "an emptied folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "a missing digest": lambda folder: (folder / "digests.json").unlink(),
    "a damaged digest": lambda folder: (folder / "digests.json").write_bytes(b"\0" * 9),
    "a folder for a file": lambda folder: (
        (folder / "items.parquet").unlink(),
        (folder / "items.parquet").mkdir(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_made_again(tmp_path, own_file, capsys, damage):
    data = options(tmp_path, path=str(own_file))
    first = prepare(data).fingerprint()
    (folder,) = (tmp_path / "cache" / "datasets").iterdir()
    damage(folder)
    assert prepare(data).fingerprint() == first
    assert f"{folder}: this cached data set is damaged" in capsys.readouterr().err
    assert prepare(data).fingerprint() == first
    assert capsys.readouterr().err == ""


def test_a_cache_of_others_is_refused(tmp_path, own_file, monkeypatch):
    data = options(tmp_path, path=str(own_file))
    prepare(data)
    cache = tmp_path / "cache"
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    with pytest.raises(UserError, match="data.cache_dir=.*writable by other users"):
        prepare(data)
    cache.chmod(0o755)
    (cache / "datasets").chmod(0o777)
    with pytest.raises(UserError, match=r"data.cache_dir=.*datasets' is writable by other users"):
        prepare(data)
    (cache / "datasets").chmod(0o755)
    prepare(data)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(UserError, match="data.cache_dir=.*belongs to another user"):
        prepare(data)
    shutil.rmtree(cache)
    cache.write_text("a file")
    with pytest.raises(UserError, match="data.cache_dir=.*cannot be written"):
        prepare(data)


def test_the_cache_gives_the_same_and_goes_by_content(tmp_path, own_file):
    data = options(tmp_path, path=str(own_file))
    first = prepare(data)
    folder = tmp_path / "cache" / "datasets"
    assert len(list(folder.iterdir())) == 1
    again = prepare(data)
    assert again.fingerprint() == first.fingerprint()
    assert again.user_ids.equals(first.user_ids)

    elsewhere = tmp_path / "elsewhere" / "own.csv"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(own_file.read_bytes())
    prepare(options(tmp_path, path=str(elsewhere)))
    assert len(list(folder.iterdir())) == 1
    elsewhere.write_text(own_file.read_text() + "999,1,0.0\n")
    assert prepare(options(tmp_path, path=str(elsewhere))).n_users == first.n_users + 1
    prepare(options(tmp_path, path=str(own_file), min_per_user=2))
    assert len(list(folder.iterdir())) == 3


def test_two_runs_may_prepare_the_same_data_at_once(tmp_path, own_file):
    """Threads that all find no cache; one entry is left, and no scratch folder."""
    data = options(tmp_path, path=str(own_file))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = [dataset.fingerprint() for dataset in pool.map(prepare, [data] * 4)]
    assert found.count(found[0]) == 4
    assert len(list((tmp_path / "cache" / "datasets").iterdir())) == 1


def test_a_folder_that_cannot_be_moved_is_no_silence(tmp_path):
    with pytest.raises(FileNotFoundError):
        catalog.move_whole(tmp_path / "absent", tmp_path / "folder")


def test_the_columns_that_were_found_are_said(tmp_path, own_file, capsys):
    prepare(options(tmp_path, path=str(own_file)))
    print_account(prepare(options(tmp_path, path=str(own_file))))  # from the cache
    assert "columns: user=user, item=item" in capsys.readouterr().out
    named = {"columns__user": "user", "columns__item": "1"}
    print_account(prepare(options(tmp_path, path=str(own_file), **named)))
    assert "user=" not in capsys.readouterr().out


def test_titles_of_your_own(tmp_path, own_file):
    titles = tmp_path / "titles.tsv"
    titles.write_text("item\ttitle\n0\tZero\n1\tOne\n")
    data = options(tmp_path, path=str(own_file), titles__path=str(titles))
    dataset = prepare(data)
    by_id = dict(zip(dataset.item_ids, dataset.titles, strict=True))
    assert by_id[1] == "One"
    assert by_id[5] == "5"  # without a title the id stands


def test_names_of_one_file_are_looked_for_in_the_other(tmp_path):
    plays, artists = tmp_path / "plays.tsv", tmp_path / "artists.csv"
    rows = "".join(f"u{user}\ta{item}\n" for user in range(4) for item in range(5))
    plays.write_text(f"listener\tartist\n{rows}")
    artists.write_text('name,artist\n"Zero, the",a0\nOne,a1\n')
    keys = {"columns__user": "listener", "columns__item": "artist", "path": str(plays)}
    data = options(tmp_path, **keys, titles__path=str(artists), titles__value="name")
    dataset = prepare(data)
    assert dataset.titles.to_list() == ["Zero, the", "One", "a2", "a3", "a4"]
    artists.write_text("name,id\nZero,a0\n")
    said = r"artists.csv, line 1: .*'name', 'id'.*data.titles.separator or data.titles.item"
    with pytest.raises(UserError, match=said):
        prepare(data)


@pytest.mark.parametrize("kind", ["npz", "text"])
def test_given_parts(tmp_path, kind):
    cells = {"train": [(0, 1), (1, 0), (2, 2)], "valid": [(0, 2)], "test": [(1, 2)]}
    paths = {}
    for part, pairs in cells.items():
        dense = np.zeros((3, 5), bool)
        dense[tuple(np.array(pairs).T)] = True
        path = tmp_path / f"{part}.{'npz' if kind == 'npz' else 'csv'}"
        if kind == "npz":
            scipy.sparse.save_npz(path, scipy.sparse.csr_array(dense))
        else:
            path.write_text("user,item\n" + "".join(f"{u},{i}\n" for u, i in pairs))
        paths[f"split__{part}_path"] = str(path)
    dataset = prepare(options(tmp_path, split__kind="given", **paths))
    # A matrix has a catalogue of its own; text files have the items that occur.
    assert dataset.train.shape == ((3, 5) if kind == "npz" else (3, 3))
    for part, pairs in cells.items():
        assert set(zip(*getattr(dataset, part).nonzero(), strict=True)) == set(pairs)

    paths["split__test_path"] = paths["split__valid_path"]
    with pytest.raises(UserError, match=r"1 of its interactions are in"):
        prepare(options(tmp_path, split__kind="given", **paths))


def test_a_given_split_without_validation(tmp_path):
    """It is cut from each user's training items: at least one, and one is left."""
    sizes = {"a": 1, "b": 2, "c": 9, "d": 25}
    rows = {"train": [(user, item) for user, size in sizes.items() for item in range(size)]}
    rows["test"] = [(user, 24) for user in "abc"]
    paths = {}
    for part, pairs in rows.items():
        path = tmp_path / f"{part}.csv"
        path.write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in pairs))
        paths[f"split__{part}_path"] = str(path)

    def made(**changes):
        return prepare(options(tmp_path, split__kind="given", **paths, **changes))

    dataset = made(split__valid=0.1)
    assert np.diff(dataset.valid.indptr).tolist() == [0, 1, 1, 2]
    assert np.diff(dataset.train.indptr).tolist() == [1, 1, 8, 23]
    together = dataset.train.astype(int) + dataset.valid.astype(int)
    assert together.max() == 1
    assert together.nnz == len(rows["train"])
    assert dataset.test.nnz == len(rows["test"])
    (step,) = map(str, dataset.account.steps)
    assert step == "cutting validation (data.split.valid=0.1) off train.csv removed 4 rows"
    other = made(split__valid=0.1, split__seed=7).valid
    assert (other != dataset.valid).nnz
    assert made(split__valid=0.0).valid.nnz == 0
    del paths["split__test_path"]
    alone = made(split__valid=0.1)
    assert alone.test.nnz == 0
    assert (alone.valid != dataset.valid).nnz == 0
    with pytest.raises(UserError, match="needs data.split.train_path"):
        prepare(options(tmp_path, split__kind="given", split__test_path="test.csv"))


def test_known_never_holds_what_is_predicted(tmp_path, own_file):
    for kind in ("user", "users"):
        dataset = prepare(options(tmp_path, path=str(own_file), split__kind=kind))
        for part in ("valid", "test"):
            known = dataset.known(part)[:].astype(int)
            assert known.nnz > 0
            assert known.multiply(getattr(dataset, part)).nnz == 0


def test_interactions_are_read_when_they_are_needed(tmp_path, own_file):
    dataset = prepare(options(tmp_path, path=str(own_file)))
    for part in PARTS:
        array = getattr(dataset, part).indices
        while isinstance(array, np.ndarray):
            array = array.base
        assert isinstance(array, mmap.mmap)


# The catalogue, with an archive of our own making in the place of the download.


@pytest.fixture
def toy_source(tmp_path, monkeypatch):
    archive = tmp_path / "published" / "toy.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        lines = [f"{u},{i},5,{u + i}" for u in range(6) for i in range(8) if (u + i) % 3]
        header = "userId,movieId,rating,timestamp"
        file.writestr("toy/ratings.csv", "\n".join([header, *lines]))
        file.writestr("toy/movies.csv", 'movieId,title,genres\n1,"One, the first",New|Old\n')
        file.writestr("../../escaped.txt", "zip slip")
    checksum = "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest()

    def publish(checksum=checksum, url=None):
        unreachable = catalog.Archive((tmp_path / "absent.zip").as_uri(), "md5:0")
        ((_, content),) = catalog._csv("toy", checksum).sources
        sources = (unreachable, catalog.Archive(url or archive.as_uri(), checksum))
        entry = catalog.Entry(tuple((source, content) for source in sources))
        monkeypatch.setitem(catalog.CATALOG, "toy", entry)

    publish()
    return publish


def test_a_download_is_verified_extracted_and_reused(tmp_path, toy_source):
    dataset = prepare(options(tmp_path, name="toy"))
    assert dataset.titles[1] == "One, the first"
    assert dataset.categories[1].to_list() == ["New", "Old"]
    assert dataset.categories[0] is None
    again = prepare(options(tmp_path, name="toy"))  # from the cache
    assert again.categories.equals(dataset.categories)
    assert not list(tmp_path.rglob("escaped.txt"))
    toy_source(url="file:///nowhere/else.zip")  # what is on disk is used
    assert prepare(options(tmp_path, name="toy")).fingerprint() == dataset.fingerprint()


def test_a_download_that_is_not_the_published_file_is_refused(tmp_path, toy_source):
    toy_source(checksum="sha256:" + "0" * 64)
    with pytest.raises(UserError, match="not the published 0000"):
        prepare(options(tmp_path, name="toy"))
    assert not (tmp_path / "cache" / "downloads" / "toy").exists()
    assert not (tmp_path / "cache" / "datasets").exists()


def test_no_source_answers(tmp_path, toy_source):
    toy_source(url="file:///nowhere/toy.zip")
    with pytest.raises(UserError, match="could not be fetched.*set data.path"):
        prepare(options(tmp_path, name="toy"))


def test_a_folder_on_disk_is_used(tmp_path, toy_source):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,5,1\n2,2,5,1\n")
    assert prepare(options(tmp_path, name="toy", path=str(folder))).n_users == 2
    with pytest.raises(UserError, match=r"there is no ratings.csv in this folder"):
        prepare(options(tmp_path, name="toy", path=str(tmp_path / "published")))


def test_checksums_are_pinned():
    for entry in catalog.CATALOG.values():
        for source, _ in entry.sources:
            kind, value = source.checksum.split(":")
            assert len(value) == {"md5": 32, "sha256": 64}[kind]


# The generator.


def test_synthetic_interactions_follow_the_planted_relations():
    table = synthetic.generate(300, 200, 12_000, seed=5)
    assert table.equals(synthetic.generate(300, 200, 12_000, seed=5))
    assert not table.equals(synthetic.generate(300, 200, 12_000, seed=6))
    assert table["user"].n_unique() == 300
    assert table["item"].is_between(0, 199).all()
    assert not table.select("user", "item").is_duplicated().any()
    related = synthetic.related_items(200, np.random.default_rng(5))
    walks = table.sort("user", "time").rows()
    pairs = [(a[1], b[1]) for a, b in itertools.pairwise(walks) if a[0] == b[0]]
    share = np.mean([b in related[a] for a, b in pairs])
    assert share > 0.3  # by chance about 4 of 200


def test_synthetic_sizes():
    table = synthetic.generate(1000, 50, 100)
    assert table["user"].n_unique() == 1000
    assert len(table) < 50 * 1000
