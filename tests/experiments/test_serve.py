"""The service as a process of its own: answers, refusals, and a run that is swapped under load."""

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
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
    """Two runs that rank differently, and a link to the first."""
    folder = tmp_path_factory.mktemp("serve")
    for seed in (1, 2):
        changes = {"seed": seed, "model.name": "hlr-r", "model.space": "sphere"}
        experiment.fit(make_config(small | changes), folder / f"run-{seed}")
    (folder / "current").symlink_to("run-1")
    return folder


@pytest.fixture(scope="module")
def server(runs):
    """(address, process) of the service of the link."""
    command = [sys.executable, FOLDER / "app.py", f"--workdir={runs / 'current'}", "--port=0"]
    with subprocess.Popen(
        [*command, "--longest=12"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield line.split()[-1], process
        finally:
            process.terminate()


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
        answers = list(pool.map(lambda user: ask(address, f"/recommend/{user}?k=5"), users))
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
    _, answer = ask(address, f"/explain/{users[0]}/{history[0]}?most=2")
    reasons = recommender.explain(users[0], history[0], most=2)["reason_item_id"].to_list()
    assert [reason["reason_item_id"] for reason in answer["reasons"]] == reasons


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/recommend/nobody", None, 404),
        ("/recommend/%00%0a", None, 404),
        ("/similar/nothing", None, 404),
        ("/explain/1/nothing", None, 404),
        ("/recommend/1?k=13", None, 422),
        ("/recommend/1?k=0", None, 422),
        ("/recommend/1?k=x", None, 422),
        ("/recommend", {"history": ["nothing"]}, 404),
        ("/recommend", {"history": {}}, 422),
        ("/recommend", {"history": [1] * 513}, 422),
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
        pattern = r'hlrcml_request_seconds_count\{path="/recommend/\{user\}",status="200"\} (\d+)'
        found = re.search(pattern, text)
        return int(found[1]) if found else 0

    before = count()
    ask(address, "/recommend/1")
    assert count() == before + 1


def test_a_run_is_swapped_and_no_request_is_lost(server, runs):
    address, process = server
    user = hlr.load(runs / "run-1").users[0]
    lists = [
        hlr.load(runs / f"run-{seed}").recommend(user, k=12)["item_id"].to_list() for seed in (1, 2)
    ]
    assert lists[0] != lists[1]

    def served():
        return ask(address, "/health")[1]["workdir"]

    def point(link_to):
        (runs / "next").symlink_to(link_to)
        os.replace(runs / "next", runs / "current")
        process.send_signal(signal.SIGHUP)

    point("nowhere")
    time.sleep(1.0)
    assert served() == str(runs / "run-1")  # what cannot be loaded changes nothing
    point("run-2")
    answers, ended = [], time.monotonic() + 120
    while time.monotonic() < ended:
        status, answer = ask(address, f"/recommend/{user}?k=12")
        assert status == 200
        answers.append([item["item_id"] for item in answer["items"]])
        if answers[-1] == lists[1]:
            break
    assert served() == str(runs / "run-2")
    assert all(answer in lists for answer in answers)


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
