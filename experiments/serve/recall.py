"""How much of the exact lists the candidates of an index hold, and how long they take.

python experiments/serve/recall.py --workdir=runs/mine
"""

import statistics
import time

import polars as pl
from absl import flags, logging
from index import Index, K  # beside this file

import hlrcml_jax as hlr
from hlrcml_jax.errors import run_program

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained run.", required=True)
_CANDIDATES = flags.DEFINE_list("candidates", ["50", "100", "200", "500"], "Candidates to try.")
_USERS = flags.DEFINE_integer("users", 1000, "Most users to ask for, one by one.", lower_bound=1)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    recommender = hlr.load(_WORKDIR.value)
    users = recommender.users[: _USERS.value].to_list()
    exact, rows = recommender.recommend(users, K), []

    def held(lists: pl.DataFrame) -> float:
        """Percent of the exact lists."""
        return 100 * len(lists.join(exact, on=["user_id", "item_id"], how="semi")) / len(exact)

    for n in map(int, _CANDIDATES.value):
        index = Index(recommender, n)
        index.recommend(users[:1])
        lists, ms = [], []
        for user in users:
            started = time.perf_counter()
            lists.append(index.recommend([user]))
            ms.append(1e3 * (time.perf_counter() - started))
        rows.append(
            {
                "candidates": n,
                "held, %": held(pl.concat(lists)),
                "of the exact candidates, %": held(recommender.recommend(users, K, candidates=n)),
                "ms a user": statistics.median(ms),
            }
        )
    with pl.Config(tbl_rows=-1, float_precision=2, tbl_hide_column_data_types=True):
        print(pl.DataFrame(rows))


if __name__ == "__main__":
    run_program(main)
