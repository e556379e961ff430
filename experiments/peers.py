"""CML and BPR beside what people would use instead: work per second, and per second of a core.

pip install -e '.[peers]'
python experiments/peers.py --cores=1

Everything trains and ranks on the synthetic interactions of `benchmark.py`, with D = 100 and one
negative, in batches of 1,000 where a program has batches: a plain loop in PyTorch, `implicit`, and
RecBole. Each program is measured in a process of its own that may use --cores cores: the median of
--repeats epochs, rankings of all users (the best 20 unseen items), or evaluations with all items.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import benchmark  # beside this file
import numpy as np
import polars as pl
import scipy.sparse
from absl import app, flags

_CORES = flags.DEFINE_integer("cores", os.cpu_count(), "Cores that each program may use.")
_PEER = flags.DEFINE_string("peer", None, "Measures this one only, on the matrix at --matrix.")
_MATRIX = flags.DEFINE_string("matrix", None, "npz file of a sparse matrix.")

FLAGS = flags.FLAGS
K = 20
LEARNING_RATE = 1e-3
# (case of benchmark.py, units of work, function that does them)
Cases = Iterator[tuple[str, int, Callable[[], object]]]


def pytorch(train: scipy.sparse.csr_array) -> Cases:
    """Embeddings, Adam and a loop, as anyone would write it."""
    import torch

    torch.set_num_threads(_CORES.value)
    n_users, n_items = train.shape
    user_E, item_E = (torch.from_numpy(x.astype(np.int64)) for x in train.nonzero())

    def hinge(user_BxD, positive_BxD, negative_BxD):
        near_B, far_B = (((user_BxD - x) ** 2).sum(1) for x in (positive_BxD, negative_BxD))
        return torch.relu(0.2 + near_B - far_B).sum()

    def logistic(user_BxD, positive_BxD, negative_BxD):
        better_B = (user_BxD * (positive_BxD - negative_BxD)).sum(1)
        return -torch.nn.functional.logsigmoid(better_B).sum()

    for name, loss in (("cml", hinge), ("bpr", logistic)):
        users = torch.nn.Embedding(n_users, FLAGS.dim)
        items = torch.nn.Embedding(n_items, FLAGS.dim)
        parameters = [users.weight, items.weight]
        optimizer = torch.optim.Adam(parameters, LEARNING_RATE)

        def epoch(users=users, items=items, optimizer=optimizer, loss=loss, name=name):
            for part_B in torch.randperm(train.nnz).split(FLAGS.batch):
                negative_B = torch.randint(n_items, part_B.shape)
                rows = users(user_E[part_B]), items(item_E[part_B]), items(negative_B)
                optimizer.zero_grad()
                loss(*rows).backward()
                optimizer.step()
                if name == "cml":  # rows stay in the unit ball
                    with torch.no_grad():
                        for table in (users.weight, items.weight):
                            table /= table.norm(dim=1, keepdim=True).clamp(min=1)

        @torch.no_grad()
        def rank(users=users, items=items, name=name):
            for first in range(0, n_users, 1000):
                user_BxD = users.weight[first : first + 1000]
                score_BxI = user_BxD @ items.weight.T
                if name == "cml":
                    score_BxI = 2 * score_BxI - (items.weight**2).sum(1)
                seen = train[first : first + 1000].nonzero()
                score_BxI[seen] = -torch.inf
                score_BxI.topk(K)

        yield f"train:{name}", train.nnz, epoch
        yield f"score:{name}", n_users, rank


def implicit(train: scipy.sparse.csr_array) -> Cases:
    """BPR without batches or exactness: threads write to shared tables, Adam has no part in it."""
    from implicit.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(FLAGS.dim, iterations=1, num_threads=_CORES.value)
    matrix = scipy.sparse.csr_matrix(train, dtype=np.float32)
    user_U = np.arange(train.shape[0])
    yield "train:bpr", train.nnz, lambda: model.fit(matrix, show_progress=False)
    yield "score:bpr", len(user_U), lambda: model.recommend(user_U, matrix, N=K)


def recbole(train: scipy.sparse.csr_array) -> Cases:
    """BPR, evaluated on one item of each user with all items ranked."""
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        setattr(np, name, kind)  # numpy 1 had these, and RecBole asks for them
    torch.set_num_threads(_CORES.value)
    folder = pathlib.Path(_MATRIX.value).parent
    (folder / "made").mkdir()
    users, items = train.nonzero()
    table = pl.DataFrame({"user_id:token": users, "item_id:token": items})
    table.write_csv(folder / "made" / "made.inter", separator="\t")
    settings = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id"]},
        "embedding_size": FLAGS.dim,
        "train_batch_size": FLAGS.batch,
        "eval_batch_size": 1000 * train.shape[1],
        "eval_args": {"split": {"LS": "test_only"}, "order": "RO", "mode": "full"},
        "metrics": ["Recall", "NDCG"],
        "topk": [1, 5, 10, K],
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
    }
    sys.argv = sys.argv[:1]  # it reads the command line
    config = Config("BPR", "made", config_dict=settings)
    init_seed(0, reproducibility=True)
    data = create_dataset(config)
    fitting, _, testing = data_preparation(config, data)
    model = get_model("BPR")(config, fitting.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "BPR")(config, model)

    def evaluate():
        return trainer.evaluate(testing, load_best_model=False, show_progress=False)

    yield "train:bpr", len(fitting.dataset), lambda: trainer._train_epoch(fitting, 0)
    yield "evaluate:bpr", train.shape[0], evaluate


PEERS = {"PyTorch": pytorch, "implicit": implicit, "RecBole": recbole}


def measure(name: str) -> None:
    """One JSON line for each case of a peer."""
    train = scipy.sparse.csr_array(scipy.sparse.load_npz(_MATRIX.value))
    for case, n, work in PEERS[name](train):
        found = benchmark.timed(work, FLAGS.repeats)
        print(json.dumps({"program": name, "case": case, "units": n} | found), flush=True)


def lines(command: list[str], folder: str | None = None) -> list[dict]:
    """What a program printed as lines of JSON; it may leave files in the folder."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main(argv) -> None:
    os.sched_setaffinity(0, range(_CORES.value))  # also for the programs that this one starts
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(_CORES.value))
    if _PEER.value:
        measure(_PEER.value)
        return
    program = str(pathlib.Path(__file__).resolve())
    train = benchmark.Setting(FLAGS.size[0]).train
    units = {"train": train.nnz, "score": train.shape[0], "evaluate": train.shape[0]}
    flags_given = [arg for arg in sys.argv[1:] if not arg.startswith("--cores")]
    cases = "train:cml,train:bpr,score:cml,score:bpr,evaluate:bpr"
    command = [sys.executable, benchmark.__file__, f"--cases={cases}", *flags_given]
    found = []
    for line in lines(command):
        if line["case"] == "machine":
            continue
        kind = line["case"].partition(":")[0]
        done = line["examples_per_s"] * line["seconds"] if kind == "train" else units[kind]
        found.append(line | {"program": "hlrcml_jax", "units": done})
    with tempfile.TemporaryDirectory() as folder:
        matrix = f"{folder}/train.npz"
        scipy.sparse.save_npz(matrix, train)
        for name in PEERS:
            own = [f"--peer={name}", f"--matrix={matrix}"]
            found += lines([sys.executable, program, *own, *sys.argv[1:]], folder)
    show(found)


def show(found: list[dict]) -> None:
    """Rates, and those of this project relative to each."""
    rates = pl.DataFrame(
        {
            "case": line["case"],
            "program": line["program"],
            "a second": line["units"] / line["seconds"],
            "a core's second": line["units"] / line["cpu_s"],
            "cores busy": line["cpu_s"] / line["seconds"],
        }
        for line in found
    )
    ours = rates.filter(pl.col("program") == "hlrcml_jax").select(
        "case", ours="a second", ours_of_core="a core's second"
    )
    table = (
        rates.join(ours, on="case", maintain_order="left")
        .with_columns(
            (pl.col("ours") / pl.col("a second")).alias("ours, times"),
            (pl.col("ours_of_core") / pl.col("a core's second")).alias("of a core, times"),
        )
        .drop("ours", "ours_of_core")
        .sort("case", maintain_order=True)
    )
    with pl.Config(tbl_rows=-1, tbl_cols=-1, float_precision=2, thousands_separator=","):
        print(table)


if __name__ == "__main__":
    sys.exit(app.run(main))
