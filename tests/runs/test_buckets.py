"""A workdir may lie in a bucket; an emulator of Google Cloud Storage stands in for the real one."""

import contextlib
import json
import socket
import urllib.parse
import urllib.request

import polars as pl
import pytest
from conftest import left
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.handlers.objects import download
from gcp_storage_emulator.server import create_server

from hlrcml_jax import storage
from hlrcml_jax.errors import UserError


class Bucket:
    """An emulated bucket.

    Attributes:
      environment: in which it is reached as gs://bucket.
    """

    def __init__(self, port: int):
        address = f"http://localhost:{port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_CLOUD_PROJECT": "project",
            "NO_GCE_CHECK": "true",
        }
        self._objects = f"{address}/storage/v1/b/bucket/o"

    def names(self) -> list[str]:
        with urllib.request.urlopen(self._objects) as answer:
            return [item["name"] for item in json.load(answer).get("items", ())]

    def write(self, name: str, content: bytes) -> None:
        query = f"uploadType=media&name={urllib.parse.quote(name, safe='')}"
        address = self._objects.replace("/storage", "/upload/storage", 1)
        headers = {"Content-Type": "application/octet-stream"}
        urllib.request.urlopen(
            urllib.request.Request(f"{address}?{query}", content, headers)
        ).close()

    def read(self, name: str) -> bytes:
        with urllib.request.urlopen(
            f"{self._objects}/{urllib.parse.quote(name, safe='')}?alt=media"
        ) as answer:
            return answer.read()


def _download(request, response, storage, *args, **kwargs):
    """As the real one does, says which generation of an object this is: writers ask for it."""
    place = request.params["bucket_name"], request.params["object_id"]
    with contextlib.suppress(NotFound):
        response["x-goog-generation"] = storage.get_file_obj(*place)["generation"]
    download(request, response, storage, *args, **kwargs)


@pytest.fixture(scope="module")
def bucket():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "download", _download)
        with create_server("localhost", port, in_memory=True, default_bucket="bucket"):
            yield Bucket(port)


def test_a_run_in_a_bucket_is_that_on_a_disk(cli, trained, bucket, tmp_path):
    workdir = "--workdir=gs://bucket/runs/mine"
    status, _, err = cli.run(*cli.small, workdir, "--config.train.epochs=2", **bucket.environment)
    assert status == 0, err
    status, out, err = cli.run(*cli.small, workdir, **bucket.environment)  # goes on
    assert status == 0, err
    assert "Resuming after epoch 2" in out
    for name in ("metrics.jsonl", "test_metrics.json"):
        (tmp_path / name).write_bytes(bucket.read(f"runs/mine/{name}"))
    assert left(tmp_path) == left(trained[0])
    names = {name.removeprefix("runs/mine/") for name in bucket.names()}
    assert {"config.json", "report.html", "plots/groups.svg", "test_users.parquet"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)

    recommend = ("--mode=recommend", "--config.recommend.format=csv")
    status, _, err = cli.run(*recommend, workdir, **bucket.environment)
    assert status == 0, err
    found = pl.read_csv(bucket.read("runs/mine/recommendations.csv"))
    status, _, err = cli.run(*recommend, f"--workdir={trained[0]}")
    assert status == 0, err
    assert found.equals(pl.read_csv(trained[0] / "recommendations.csv"))
    assert not any("parts" in name for name in bucket.names())


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(cli, trained, bucket, tmp_path):
    workdir = "--workdir=gs://bucket/runs/damaged"
    status, _, err = cli.run(*cli.small, workdir, "--config.train.epochs=2", **bucket.environment)
    assert status == 0, err
    bucket.write("runs/damaged/checkpoints/2/metrics/metrics", b"{broken")
    status, out, err = cli.run(*cli.small, workdir, **bucket.environment)
    assert status == 0, err
    assert "checkpoints/2: the metrics of this checkpoint are unreadable; moved to damaged/" in err
    assert "Resuming after epoch 1" in out
    assert bucket.read("runs/damaged/damaged/2-0/metrics/metrics") == b"{broken"
    for name in ("metrics.jsonl", "test_metrics.json"):
        (tmp_path / name).write_bytes(bucket.read(f"runs/damaged/{name}"))
    assert left(tmp_path) == left(trained[0])


def test_a_bucket_that_is_not_there_is_named(cli, bucket):
    status, _, err = cli.run(*cli.small, "--workdir=gs://another/run", **bucket.environment)
    assert status == 2
    assert "gs://another/run" in err
    assert len(err.strip().splitlines()) == 1


def test_what_reaches_buckets_may_be_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://bucket/run: .*pip install gcsfs\."):
        storage.absolute("gs://bucket/run")
