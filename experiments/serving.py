"""How long people wait for a trained run: start, loading, lists and reasons, one call at a time.

python experiments/serving.py --workdir=runs/mine

Start-up is measured in fresh processes, with the compilation cache that earlier ones leave. Calls
follow `warm_up`, for --calls users of all lengths of history: the median, 95th percentile and
worst in milliseconds, and how many programs were compiled meanwhile. The last table has the share
of the exact top k that `candidates` of several numbers hold.
"""

import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
import polars as pl
from absl import flags, logging

import hlrcml_jax as hlr
from hlrcml_jax.errors import run_program

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained run.", required=True)
_CALLS = flags.DEFINE_integer("calls", 1000, "Calls of each kind.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Fresh processes, and calls for many users.")
_CANDIDATES = flags.DEFINE_list("candidates", ["50", "100", "200", "500"], "Candidates to try.")
K = 10
MANY = 1000  # users of one call

START = """
import json, time
started = time.perf_counter()
seconds = {}
def lap(name):
    global started
    seconds[name] = time.perf_counter() - started
    started = time.perf_counter()
import hlrcml_jax as hlr
lap("import hlrcml_jax")
hlr.load
lap("import jax and the rest")
recommender = hlr.load(WORKDIR)
lap("load")
recommender.recommend(recommender.users[0])
lap("first list")
print(json.dumps(seconds))
"""


def start(workdir: str) -> dict[str, list[float]]:
    """Seconds of the stages from start to the first list, one each of several processes."""
    found: dict[str, list[float]] = {}
    code = START.replace("WORKDIR", repr(workdir))
    for repeat in range(1 + _REPEATS.value):  # the first fills the cache
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        if repeat:
            for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                found.setdefault(name, []).append(seconds)
    for _ in range(_REPEATS.value):
        started = time.perf_counter()
        command = [sys.executable, "-m", "hlrcml_jax.main", "--help"]
        subprocess.run(command, check=False, capture_output=True)
        found.setdefault("--help", []).append(time.perf_counter() - started)
    return found


def timed(function: Callable[[object], object], arguments: Iterable[object]) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for argument in arguments:
        started = time.perf_counter()
        function(argument)
        seconds.append(time.perf_counter() - started)
    return seconds


class Compilations:
    """Counts the programs that jax compiles from now on."""

    def __init__(self):
        import jax

        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, *_, **__) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


def calls(recommender: hlr.Recommender) -> list[dict[str, object]]:
    """One row for each kind of call."""
    known = (
        recommender.history()
        .group_by("user_id")
        .agg("item_id")
        .sample(fraction=1, shuffle=True, seed=0)
    )
    histories = dict(known.iter_rows())
    users = list(itertools.islice(itertools.cycle(histories), _CALLS.value))
    items = recommender.items
    some = items.sample(min(100, len(items)), seed=0)
    kinds = {
        "known user": lambda user: recommender.recommend(user, K),
        "known user, 100 items": lambda user: recommender.recommend(user, K, items=some),
        "new user": lambda user: recommender.recommend_new({"new": histories[user]}, K),
        "reasons": lambda user: recommender.explain(user, items[0], most=3),
        "similar items": lambda user: recommender.similar_items(histories[user][0], K),
    }
    compilations, rows = Compilations(), []
    for name, call in kinds.items():
        before = compilations.count
        ms = 1e3 * np.array(timed(call, users))
        rows.append(
            {
                "call": name,
                "median": float(np.median(ms)),
                "p95": float(np.percentile(ms, 95)),
                "worst": float(ms.max()),
                "compiled": compilations.count - before,
            }
        )
    return rows


def held(recommender: hlr.Recommender, users: pl.Series) -> list[dict[str, object]]:
    """Share of the exact lists that lists of candidates hold, and milliseconds a user."""
    exact = recommender.recommend(users, K).select("user_id", "item_id")
    rows = []
    for n in map(int, _CANDIDATES.value):
        recommender.recommend(users, K, candidates=n)
        started = time.perf_counter()
        found = recommender.recommend(users, K, candidates=n).select("user_id", "item_id")
        ms = 1e3 * (time.perf_counter() - started) / len(users)
        share = len(found.join(exact, on=["user_id", "item_id"])) / len(exact)
        rows.append({"candidates": n, "held, %": 100 * share, "ms a user": ms})
    return rows


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # orbax and jax say a lot
    workdir = str(pathlib.Path(_WORKDIR.value).resolve())
    recommender = hlr.load(workdir)
    stages = start(workdir)
    rows = [
        {"stage": name, "median, s": statistics.median(each), "worst, s": max(each)}
        for name, each in stages.items()
    ]
    show(rows)
    started = time.perf_counter()
    recommender.warm_up(K)
    print(f"{len(recommender.users):,} users, {len(recommender.items):,} items; ", end="")
    print(f"warm_up took {time.perf_counter() - started:.1f} s.")
    show(calls(recommender))
    users = recommender.users[:MANY]
    seconds = timed(lambda _: recommender.recommend(users, K), range(1 + _REPEATS.value))
    print(f"{len(users):,} users in one call: {statistics.median(seconds[1:]):.2f} s.")
    show(held(recommender, users))


def show(rows: list[dict[str, object]]) -> None:
    with pl.Config(tbl_rows=-1, float_precision=2, tbl_hide_column_data_types=True):
        print(pl.DataFrame(rows))


if __name__ == "__main__":
    run_program(main)
