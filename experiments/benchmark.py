"""Speed of training, sampling and scoring, beside the rates of the machine.

python experiments/benchmark.py
python experiments/benchmark.py --cases=train:hlr,score:hlr --size=ml-20m --rows=lazy --devices=4

Prints one JSON line per case: medians of --repeats, the spread, and the share of a bound set by the
machine's own rates, measured in the same process (matrix products, copies, exp). The data is
synthetic, in the size of MovieLens 1M or 20M (ratings of 4 and more, 10-core), D = 100, M = 20, S =
50, batches of 1,000, unless flags say otherwise; training has the paper's loss and one negative.
`train:recipe` is best.py as it is, before and after its relation enters. `cpu_s` is processor time,
of all cores, in the median measurement. With --candidates, `score` ranks those alone of each user.
`--profile=DIR` leaves a trace of each case for TensorBoard or Perfetto. `peak_gb` is the largest
memory of the process so far: for that of one case, run it alone.
"""

import functools
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

KINDS = ("train", "sample", "score", "evaluate", "start")
_CASES = flags.DEFINE_list("cases", ["all"], f"KIND:MODEL, or a KIND of {', '.join(KINDS)}.")
_SIZE = flags.DEFINE_list("size", ["ml-1m"], "ml-1m or ml-20m, or both.")
_USERS = flags.DEFINE_integer("users", 0, "Number of users; 0: as in --size.")
_ITEMS = flags.DEFINE_integer("items", 0, "Number of items; 0: as in --size.")
_DIM = flags.DEFINE_integer("dim", 100, "Length of the vectors (D).")
_SLOTS = flags.DEFINE_integer("slots", 20, "Slots of the memory (M).")
_PREFS = flags.DEFINE_integer("prefs", 50, "Most past items of a user (S).")
_BATCH = flags.DEFINE_integer("batch", 1000, "Batch size (B).")
_NEGATIVES = flags.DEFINE_integer("negatives", 1, "Negatives per example (N).")
_SHARED = flags.DEFINE_bool("shared", False, "Negatives shared by a batch.")
_ROWS = flags.DEFINE_enum("rows", "dense", ["dense", "lazy"], "Rows that a step updates.")
_CANDIDATES = flags.DEFINE_integer("candidates", 0, "Items to retrieve and rank; 0: all items.")
_RANKED = flags.DEFINE_integer("ranked", 8000, "Most users to rank for.")
_STORAGE = flags.DEFINE_string("storage", "float32", "dtype of the cached item-pair relations.")
_MEMORY = flags.DEFINE_integer("memory_mb", 256, "Working memory of scoring, MiB.")
_DEVICE = flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], "JAX's choice by default.")
_DEVICES = flags.DEFINE_integer("devices", 0, "Simulated CPU devices; 0: none.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements per case.")
_STEPS = flags.DEFINE_integer("steps", 50, "Training steps per measurement.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for traces.")

MODELS = ("cml", "bpr", "lrml", "transcf", "adacml", "hlr", "hlr++", "hlr-r")
SIZES = {"ml-1m": (5_949, 2_810, 411_501), "ml-20m": (136_677, 20_720, 7_200_000)}


def timed(function, repeats: int, name: str = "") -> dict[str, float]:
    """Median and spread of seconds, after one call that warms up; and a trace of another one."""
    import jax

    function()
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        started, cpu_started = time.perf_counter(), time.process_time()
        function()
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    if name and _PROFILE.value:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it would push what the device does out of the trace
        folder = os.path.join(_PROFILE.value, name.replace(":", "-"))
        with jax.profiler.trace(folder, profiler_options=options):
            function()
    spread = (max(seconds) - min(seconds)) / statistics.median(seconds)
    return {
        "seconds": statistics.median(seconds),
        "cpu_s": statistics.median(cpu_seconds),
        "spread": round(spread, 3),
    }


def machine(repeats: int) -> dict[str, float]:
    """GFLOP/s of a large float32 product, GB/s of a copy (read and written), 10^9 exp/s."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((3000, 3000))
    x = jnp.zeros(20_000_000)  # more than caches hold, and less than what the cases need
    product, copy, exp = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1), jax.jit(jnp.exp)
    small = jnp.zeros(2_000_000)

    def seconds(function, argument):
        return timed(lambda: jax.block_until_ready(function(argument)), repeats)["seconds"]

    return {
        "gflops": 2 * 3000**3 / seconds(product, a) / 1e9,
        "gb_per_s": 2 * x.nbytes / seconds(copy, x) / 1e9,
        "gexp_per_s": small.size / seconds(exp, small) / 1e9,
    }


def interactions(n_users: int, n_items: int, n: int):
    """Synthetic interactions as CSR."""
    from hlrcml_jax.data import synthetic
    from hlrcml_jax.data.dataset import to_csr

    # The walks repeat pairs; so many more steps leave about as many distinct ones.
    table = synthetic.generate(n_users, n_items, int(1.5 * n), seed=0)
    users, items = table["user"].to_numpy()[:n], table["item"].to_numpy()[:n]
    return to_csr(users, items, (n_users, n_items))


class Setting:
    """Synthetic interactions of one size, and a model's parameters."""

    def __init__(self, size: str):
        n_users, n_items, n = SIZES[size]
        per_user = n / n_users
        self.n_users, self.n_items = _USERS.value or n_users, _ITEMS.value or n_items
        # In another process, whose memory does not count here.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            size = (self.n_users, self.n_items, int(per_user * self.n_users))
            self.train = pool.apply(interactions, size)

    def model(self, name: str):
        """(model, its fresh parameters)."""
        import jax

        from hlrcml_jax import schema
        from hlrcml_jax.models import make_model
        from hlrcml_jax.training.step import init_params

        options = schema.Model(name=name, dim=_DIM.value, memory_slots=_SLOTS.value)
        model = make_model(options)
        params = init_params(jax.random.key(0), model, self.n_users, self.n_items, _DIM.value)
        return model, params

    def scorer(self, model):
        """Ranks with the training interactions as histories."""
        import jax

        from hlrcml_jax.ranking.scorer import Scorer

        prefs, room = _PREFS.value if model.spec.needs_past else 0, _MEMORY.value
        key, storage = jax.random.key(0), _STORAGE.value
        return Scorer(model, self.train, prefs, "uniform", room, key, storage=storage)


def train(setting: Setting, name: str, rates: dict[str, float]) -> dict[str, float]:
    """Examples per second of the scanned epoch, sampling included."""
    from hlrcml_jax.training.losses import hinge, logistic
    from hlrcml_jax.training.objective import Objective
    from hlrcml_jax.training.optimizer import make_optimizer, row_radii
    from hlrcml_jax.training.sampling import Sampler
    from hlrcml_jax.training.step import Trainer, init_state

    if name == "recipe":
        return train_recipe(setting)
    model, params = setting.model(name)
    optimizer = make_optimizer(2e-4, row_radii(1.0 if model.spec.ball else None))
    pairwise = functools.partial(hinge, margin=0.2)
    objective = Objective(logistic if model.spec.logistic else pairwise)
    trainer = Trainer(model, objective, optimizer, _BATCH.value, _ROWS.value)
    sampler = Sampler.of(
        setting.train,
        _PREFS.value if model.spec.needs_past else 0,
        candidates=_NEGATIVES.value,
        shared=_SHARED.value,
    ).place()
    found = train_steps(setting, trainer, init_state(params, optimizer), sampler, name)
    bound = {}
    if products := train_products(name):
        bound["share_of_bound"] = found["examples_per_s"] * products / (1e9 * rates["gflops"])
    return found | bound


def train_recipe(setting: Setting) -> dict[str, float]:
    """As `train` of best.py, once its relation has entered, and before as `*_before`."""
    import pathlib

    import scipy.sparse

    from hlrcml_jax import config_files
    from hlrcml_jax.config import validate
    from hlrcml_jax.data.dataset import Dataset
    from hlrcml_jax.runs import build
    from hlrcml_jax.runs.run import Run

    nothing = scipy.sparse.csr_array(setting.train.shape, dtype=bool)
    dataset = Dataset(setting.train, nothing, nothing, nothing, None, None)
    run = Run(validate(config_files.read("best")), dataset, pathlib.Path())
    trainer, state = build.make_trainer(run), build.initial_state(run)
    sampler = build.make_sampler(run)
    before, after = (
        train_steps(setting, each, state, sampler, f"recipe-{place}")
        for place, each in (("before", trainer.without_relation()), ("after", trainer))
    )
    return after | {f"{name}_before": value for name, value in before.items()}


def train_steps(setting, trainer, state, sampler, name) -> dict[str, float]:
    """Examples per second of an epoch of --steps batches of random interactions."""
    import jax
    import numpy as np

    from hlrcml_jax import devices
    from hlrcml_jax.training.interactions import Positives

    positives = Positives.of(setting.train)
    n = _STEPS.value * trainer.batch_size
    chosen = np.random.default_rng(0).integers(0, setting.train.nnz, n)
    users, items = positives.user_E[chosen], positives.item_E[chosen]
    positives = positives.replace(user_E=users, item_E=items, count=np.int32(n), total=n)
    state = devices.replicate(jax.device_get(state))
    key = devices.replicate(jax.random.key_data(jax.random.key(1)))
    arguments = (sampler, devices.replicate(positives), key)
    started = time.perf_counter()
    epoch = devices.compiled(trainer.train_epoch, (state, *arguments), donate=(0,))
    compile_s = time.perf_counter() - started

    def run():
        nonlocal state
        state, loss_T = epoch(state, *arguments)
        devices.first(loss_T)

    found = timed(run, _REPEATS.value, f"train:{name}")
    return {"examples_per_s": n / found["seconds"], "compile_s": compile_s} | found


def train_products(name: str) -> int:
    """Operations of an example: logits of all slots, for two targets, forward and twice backward.

    HLR++'s relations of the user and its past items serve both targets.
    """
    prefs = _PREFS.value
    of_items = 2 * (prefs + 1)
    slots = {"lrml": 2, "hlr": of_items, "hlr-r": of_items, "hlr++": of_items + prefs}
    return 3 * slots.get(name, 0) * 2 * _DIM.value * _SLOTS.value


def sample(setting: Setting, _: str, rates: dict[str, float]) -> dict[str, float]:
    """Examples drawn per second, with their negatives and past items."""
    import jax
    import jax.numpy as jnp

    from hlrcml_jax.training.interactions import Positives
    from hlrcml_jax.training.sampling import Sampler, draw_batch

    sampler, positives = jax.device_put(
        (Sampler.of(setting.train, _PREFS.value), Positives.of(setting.train))
    )
    draw = jax.jit(draw_batch)
    example = jnp.arange(50 * _BATCH.value) % setting.train.nnz
    found = timed(
        lambda: jax.block_until_ready(draw(sampler, positives, jax.random.key(0), example)),
        _REPEATS.value,
        "sample",
    )
    return {"examples_per_s": len(example) / found["seconds"]} | found


def score(setting: Setting, name: str, rates: dict[str, float]) -> dict[str, float]:
    """Milliseconds per user for the best 20 unseen items, of all or of candidates."""
    import numpy as np

    from hlrcml_jax import devices
    from hlrcml_jax.training.interactions import UserItems
    from hlrcml_jax.training.step import widen

    model, params = setting.model(name)
    params = devices.replicate(widen(model, params, UserItems.of(setting.train)))
    scorer = setting.scorer(model)
    users = np.arange(min(_RANKED.value, setting.n_users))
    candidates = _CANDIDATES.value

    def run():
        return list(scorer.rank(params, users, 20, candidates=candidates))

    found = timed(run, _REPEATS.value, f"score:{name}")
    ms_per_user = 1e3 * found["seconds"] / len(users)
    bound = {}
    if not candidates and (seconds := score_seconds(setting, name, rates, len(users))):
        bound["share_of_bound"] = 1e3 * seconds / ms_per_user
    return {"ms_per_user": ms_per_user} | bound | found


def score_seconds(setting: Setting, name: str, rates: dict[str, float], n_users: int) -> float:
    """Least seconds of a user: products of its own relations and its share of the items', and exp.

    Mixing the relations of the past items is not counted: there is no measured rate of it.
    """
    attentions = {"lrml": 0, "hlr": 1, "hlr-r": 1, "hlr++": 2}
    if name not in attentions:
        return 0.0
    pairs = setting.n_items * (1 if name == "lrml" else 1 + setting.n_items / n_users)
    logits = 2 * pairs * _SLOTS.value * _DIM.value
    attended = attentions[name] * setting.n_items * (1 + _PREFS.value)
    exps = pairs * _SLOTS.value + attended
    return logits / (1e9 * rates["gflops"]) + exps / (1e9 * rates["gexp_per_s"])


def evaluate(setting: Setting, name: str, rates: dict[str, float]) -> dict[str, float]:
    """Users per second of an evaluation, from parameters to the table of means."""
    import numpy as np
    import scipy.sparse

    from hlrcml_jax import devices
    from hlrcml_jax.data.dataset import Dataset
    from hlrcml_jax.ranking import evaluation
    from hlrcml_jax.training.interactions import UserItems
    from hlrcml_jax.training.step import widen

    model, params = setting.model(name)
    params = devices.replicate(widen(model, params, UserItems.of(setting.train)))
    nothing = scipy.sparse.csr_array(setting.train.shape, dtype=bool)
    users = np.arange(min(_RANKED.value, setting.n_users))
    relevant = scipy.sparse.csr_array(
        (np.ones(len(users), bool), (users, users % setting.n_items)), shape=setting.train.shape
    )
    dataset = Dataset(setting.train, nothing, relevant, nothing, None, None)
    scorer = setting.scorer(model)
    protocol = evaluation.Protocol((1, 5, 10, 20), "standard", 1, 5, len(users), 0)

    def run():
        return evaluation.evaluate(scorer, params, dataset, "test", protocol).means()

    found = timed(run, _REPEATS.value, f"evaluate:{name}")
    return {"users_per_s": len(users) / found["seconds"]} | found


def start(setting: Setting, name: str, rates: dict[str, float]) -> dict[str, float]:
    """Seconds of a run of one epoch on a small file, with an empty compilation cache and after."""
    from hlrcml_jax.data import synthetic

    with tempfile.TemporaryDirectory() as folder:
        synthetic.generate(60, 40, 2400, seed=1).write_csv(f"{folder}/small.csv")
        command = [sys.executable, "-m", "hlrcml_jax.main", "--config=configs/default.py"]
        command += [f"--config.data.path={folder}/small.csv", f"--config.model.name={name}"]
        command += [f"--config.data.cache_dir={folder}/cache", "--config.train.epochs=1"]
        seconds = {}
        for state in ("cold_s", "warm_s"):
            started = time.perf_counter()
            workdir = f"--workdir={folder}/{state}"
            subprocess.run([*command, workdir], check=True, capture_output=True)
            seconds[state] = time.perf_counter() - started
    return seconds


CASES = dict(zip(KINDS, (train, sample, score, evaluate, start), strict=True))


def chosen_cases() -> list[tuple[str, str]]:
    """(kind, model) of every case chosen by the flags."""
    usual = [("sample", "")]
    usual += [(kind, name) for kind in ("train", "score") for name in MODELS]
    usual += [("train", "recipe"), ("evaluate", "hlr"), ("start", "hlr")]
    chosen = []
    for wanted in _CASES.value:
        kind, colon, name = wanted.partition(":")
        if kind not in (*KINDS, "all"):
            sys.exit(f"--cases={wanted}: there is no such kind.")
        of_kind = [case for case in usual if wanted in ("all", case[0])]
        chosen += [(kind, name)] if colon else of_kind
    return list(dict.fromkeys(chosen))


def main(_) -> None:
    if _DEVICES.value:
        flag = f"--xla_force_host_platform_device_count={_DEVICES.value}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    if _DEVICE.value:
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(_DEVICE.value, _DEVICE.value)
    started = time.perf_counter()
    import jax

    import hlrcml_jax.runs.experiment  # noqa: F401 (what a run imports)

    jax.devices()
    import_s = time.perf_counter() - started
    rates = machine(_REPEATS.value)
    kind = jax.devices()[0].device_kind
    devices = {"device": kind, "devices": jax.local_device_count()}
    print_line(case="machine", **devices, import_s=import_s, **rates)
    for size in _SIZE.value:
        setting = Setting(size)
        for kind, name in chosen_cases():
            found = CASES[kind](setting, name, rates)
            print_line(case=f"{kind}:{name}".rstrip(":"), size=size, **found)


def print_line(**values) -> None:
    """One JSON line, numbers to four digits, with the largest memory of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    rounded = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in (values | {"peak_gb": peak}).items()
    }
    print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
    sys.exit(app.run(main))
