"""How much of the exact lists the candidates of an index hold, and how long they take.

python experiments/serve/recall.py --workdir=runs/mine
"""

import statistics
import time

import polars as pl
from absl import app, flags, logging
from index import Index, K  # beside this file

import hlrcml_jax as hlr

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained run.", required=True)
_CANDIDATES = flags.DEFINE_list("candidates", ["50", "100", "200", "500"], "Candidates to try.")
_USERS = flags.DEFINE_integer("users", 1000, "Most users to ask for, one by one.", lower_bound=1)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    recommender = hlr.load(_WORKDIR.value)
    users = recommender.users[: _USERS.value].to_list()
    exact = recommender.recommend(users, K).select("user_id", "item_id")
    rows = []
    for n in map(int, _CANDIDATES.value):
        index = Index(recommender, n)
        index.recommend(users[:1])
        lists, ms = [], []
        for user in users:
            started = time.perf_counter()
            lists.append(index.recommend([user]).select("user_id", "item_id"))
            ms.append(1e3 * (time.perf_counter() - started))
        held = len(pl.concat(lists).join(exact, on=["user_id", "item_id"])) / len(exact)
        by_vectors = recommender.recommend(users, K, candidates=n).select("user_id", "item_id")
        exactly = len(by_vectors.join(exact, on=["user_id", "item_id"])) / len(exact)
        rows.append(
            {
                "candidates": n,
                "held, %": 100 * held,
                "of the exact candidates, %": 100 * exactly,
                "ms a user": statistics.median(ms),
            }
        )
    with pl.Config(tbl_rows=-1, float_precision=2, tbl_hide_column_data_types=True):
        print(pl.DataFrame(rows))


if __name__ == "__main__":
    app.run(main)
