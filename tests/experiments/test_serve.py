"""The service as a process of its own: answers, refusals, and a run that is swapped under load."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request

import polars as pl
import pytest
from conftest import ROOT

import hlrcml_jax as hlr
from hlrcml_jax.config import make_config
from hlrcml_jax.runs import experiment

FOLDER = ROOT / "experiments" / "serve"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """Two runs that rank differently, the second without user 1, and a link to the first."""
    folder = tmp_path_factory.mktemp("serve")
    table = pl.read_csv(small["data.path"]).with_columns(pl.format("u/{}", "user").alias("user"))
    for seed, rows in ((1, table), (2, table.filter(pl.col("user") != "u/1"))):
        rows.write_csv(folder / f"{seed}.csv")
        changes = {"seed": seed, "model.name": "hlr-r", "model.space": "sphere"}
        changes |= {"data.path": str(folder / f"{seed}.csv")}
        experiment.fit(make_config(small | changes), folder / f"run-{seed}")
    (folder / "current").symlink_to("run-1")
    return folder


@contextlib.contextmanager
def serving(workdir, log, *arguments):
    """(address, process) of a service."""
    command = [sys.executable, FOLDER / "app.py", f"--workdir={workdir}", "--port=0", *arguments]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=ENVIRONMENT
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            assert line, log.read_text()
            yield line.split()[-1], process
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def server(runs):
    with serving(runs / "current", runs / "log", "--longest=12") as service:
        yield service


def path_of(*ids):
    return "/".join(urllib.parse.quote(str(id), safe="") for id in ids)


def ask(address, path, body=None):
    """(status, decoded answer)."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_answers_are_those_of_python(server, runs):
    address, _ = server
    recommender = hlr.load(runs / "run-1")
    users = recommender.users.head(20).to_list()
    lists = recommender.recommend(users, k=5).partition_by("user_id", as_dict=True)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda user: ask(address, f"/recommend/{path_of(user)}?k=5"), users)
        )
    for user, (status, answer) in zip(users, answers, strict=True):
        assert status == 200
        assert answer["user_id"] == str(user)
        expected = lists[(user,)]["item_id"].to_list()
        assert [item["item_id"] for item in answer["items"]] == expected
    history = recommender.items.head(4).to_list()
    _, answer = ask(address, "/recommend", {"history": history, "k": 7})
    new = recommender.recommend_new({0: history}, k=12)["item_id"].to_list()
    assert [item["item_id"] for item in answer["items"]] == new[:7]
    _, answer = ask(address, f"/similar/{history[0]}?k=3")
    similar = recommender.similar_items(history[0], k=3)["item_id"].to_list()
    assert [item["item_id"] for item in answer["items"]] == similar
    _, answer = ask(address, f"/explain/{path_of(users[0])}?item={history[0]}&most=2")
    reasons = recommender.explain(users[0], history[0], most=2)["reason_item_id"].to_list()
    assert [reason["reason_item_id"] for reason in answer["reasons"]] == reasons


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/recommend/nobody", None, 404),
        ("/recommend/%00%0a", None, 404),
        ("/similar/nothing", None, 404),
        ("/explain/u/1?item=nothing", None, 404),
        ("/explain/u/1", None, 422),
        ("/recommend/u/1?k=13", None, 422),
        ("/recommend/u/1?k=0", None, 422),
        ("/recommend/u/1?k=x", None, 422),
        ("/recommend", {"history": ["nothing"]}, 404),
        ("/recommend", {"history": {}}, 422),
        ("/recommend", {"history": [1] * 513}, 422),
        ("/recommend", {"history": [True]}, 422),
        ("/recommend", {"history": [float("nan")]}, 422),
        ("/recommend", {"history": [1], "k": float("inf")}, 422),
        ("/reload", None, 404),
    ],
)
def test_what_cannot_be_answered_is_refused(server, path, body, status):
    found, answer = ask(server[0], path, body)
    assert found == status
    assert answer["detail"]


def test_requests_are_counted(server):
    address, _ = server

    def count():
        with urllib.request.urlopen(address + "/metrics") as answer:
            text = answer.read().decode()
        path = re.escape("/recommend/{user:path}")
        pattern = rf'hlrcml_request_seconds_count\{{path="{path}",status="200"\}} (\d+)'
        found = re.search(pattern, text)
        return int(found[1]) if found else 0

    before = count()
    ask(address, "/recommend/u%2F1")
    assert count() == before + 1


def test_a_run_is_swapped_and_no_request_is_lost(server, runs):
    """While eight clients ask, also for a user whom the second run does not have."""
    address, process = server
    users = hlr.load(runs / "run-2").users.head(4).to_list()
    lists = []
    for seed in (1, 2):
        found = hlr.load(runs / f"run-{seed}").recommend(users, k=12).partition_by("user_id")
        lists.append({each["user_id"][0]: each["item_id"].to_list() for each in found})
    assert all(lists[0][user] != lists[1][user] for user in users)

    def point(link_to):
        (runs / "next").symlink_to(link_to)
        os.replace(runs / "next", runs / "current")
        process.send_signal(signal.SIGHUP)

    def served():
        return ask(address, "/health")[1]["workdir"]

    stop, answers = threading.Event(), []

    def client(user):
        while not stop.is_set():
            answers.append((user, *ask(address, f"/recommend/{path_of(user)}?k=12")))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, user) for user in [*users, *users[:3], "u/1"]]
        try:
            point("nowhere")
            wait_for(lambda: "still serving" in (runs / "log").read_text())
            assert served() == str(runs / "run-1")
            point("run-2")
            wait_for(lambda: served() == str(runs / "run-2"))
            wait_for(lambda: answers[-1][1] == 404 or answers[-1][0] != "u/1")
            time.sleep(0.5)
        finally:
            stop.set()
        for each in clients:
            each.result()
    for user, status, answer in answers:
        if status == 404:
            assert user == "u/1"
        else:
            assert status == 200
            items = [item["item_id"] for item in answer["items"]]
            assert user == "u/1" or items in (lists[0][user], lists[1][user])
    assert {status for user, status, _ in answers if user == "u/1"} == {200, 404}


def wait_for(condition):
    ended = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < ended
        time.sleep(0.1)


def test_one_who_cannot_be_answered_takes_nobody_along(load_program):
    program = load_program(FOLDER / "app.py")

    def lists(users, k):
        if "bad" in users:
            raise KeyError("of something else")
        return {user: [{"item_id": user}] * k for user in users}

    served = types.SimpleNamespace(users=frozenset({"a", "b", "bad"}), lists=lists)

    async def ask_all():
        service = program.Service(lambda: served, 2)
        asked = [service.list_of(user) for user in ("a", "bad", "b", "nobody")]
        found = await asyncio.gather(*asked, return_exceptions=True)
        service._busy = None
        again = await service.list_of("a")
        return found, again

    (a, bad, b, nobody), again = asyncio.run(ask_all())
    assert a == again == [{"item_id": "a"}] * 2
    assert b == [{"item_id": "b"}] * 2
    assert isinstance(bad, KeyError)
    assert isinstance(nobody, program.UnknownUser)


def test_too_many_are_told_so(load_program, monkeypatch):
    program = load_program(FOLDER / "app.py")
    monkeypatch.setattr(program, "MOST_WAITING", 3)
    served = types.SimpleNamespace(users=frozenset("a"), lists=lambda users, k: {"a": [{}] * k})

    async def ask_all():
        service = program.Service(lambda: served, 1)
        asked = [service.list_of("a") for _ in range(5)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        return found, await service.list_of("a")

    found, later = asyncio.run(ask_all())
    assert [isinstance(each, program.Overloaded) for each in found] == [False] * 3 + [True] * 2
    assert later == [{}]


def test_a_service_with_an_index(runs):
    recommender = hlr.load(runs / "run-1")
    with serving(runs / "run-1", runs / "log-of-index", "--longest=12", "--index=6") as (
        address,
        _,
    ):
        user = recommender.users[3]
        status, answer = ask(address, f"/recommend/{path_of(user)}?k=12")
    assert status == 200
    exact = recommender.recommend(user, k=12)["item_id"].to_list()
    assert len(answer["items"]) == 12  # more than it has candidates for shorter lists
    assert len({item["item_id"] for item in answer["items"]} & set(exact)) >= 6


def test_a_service_without_a_run_says_so(tmp_path):
    command = [sys.executable, FOLDER / "app.py", f"--workdir={tmp_path}", "--port=0"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_an_index_of_all_items_gives_the_exact_lists(load_program, runs):
    index = load_program(FOLDER / "index.py")
    recommender = hlr.load(runs / "run-1")
    users = recommender.users.head(10).to_list()
    exact = recommender.recommend(users, k=5)
    found = index.Index(recommender, len(recommender.items)).recommend(users, k=5)
    assert found["item_id"].to_list() == exact["item_id"].to_list()
    few = index.Index(recommender, 8)
    item_IxF = recommender.item_factors()["factors"].to_numpy()
    for user, items in few.candidates(users).items():
        score_I = item_IxF @ recommender.user_factors(user)["factors"].to_numpy()[0]
        had = recommender.history(user)["item_id"].to_list()
        closest = recommender.items.gather((-score_I).argsort())
        assert items.to_list() == [item for item in closest if item not in had][:8]
    known = recommender.history(users).select("user_id", "item_id")
    lists = few.recommend(users, k=5)
    assert lists.join(known, on=["user_id", "item_id"]).is_empty()
    assert lists["score"].dtype == pl.Float32


def test_the_container_has_all_that_it_copies():
    for line in (FOLDER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
