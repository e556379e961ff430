"""Speed of training, sampling and scoring, beside what the machine can do.

python experiments/benchmark.py
python experiments/benchmark.py --cases=train:hlr,score:hlr --size=ml-20m --devices=4

Prints one JSON line a case: medians of --repeats, the spread, and the share of a bound that the
machine's own rates set, which are measured in the same process (matrix products, copies, exp).
The data is synthetic, in the size of MovieLens 1M or 20M (ratings of 4 and more, 10-core); D = 100,
M = 20, S = 50, batches of 1,000. `--profile=DIR` leaves a trace for TensorBoard or Perfetto.
"""

import contextlib
import json
import os
import resource
import statistics
import sys
import time

from absl import app, flags

_CASES = flags.DEFINE_list(
    "cases", ["all"], "KIND:MODEL, or a KIND: train, sample, score, evaluate."
)
_SIZE = flags.DEFINE_list("size", ["ml-1m"], "ml-1m or ml-20m, or both.")
_DEVICE = flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], "Kind of device; JAX's choice.")
_DEVICES = flags.DEFINE_integer("devices", 0, "Simulated CPU devices; 0 takes what is there.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each case.")
_STEPS = flags.DEFINE_integer("steps", 50, "Training steps in a measurement.")
_USERS = flags.DEFINE_integer("users", 8000, "Most users that are ranked for.")
_ROWS = flags.DEFINE_enum("rows", "dense", ["dense", "lazy"], "Updates of the tables.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder of a trace.")

TRAINED = ("cml", "bpr", "lrml", "transcf", "adacml", "hlr", "hlr++")
SIZES = {"ml-1m": (5_949, 2_810, 411_501), "ml-20m": (136_677, 20_720, 7_200_000)}
DIM, SLOTS, PREFS, BATCH = 100, 20, 50, 1000


def timed(function, repeats: int) -> dict[str, float]:
    """Median and spread of seconds, after one call that warms up."""
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    spread = (max(seconds) - min(seconds)) / statistics.median(seconds)
    return {"seconds": statistics.median(seconds), "spread": round(spread, 3)}


def machine(repeats: int) -> dict[str, float]:
    """GFLOP/s of a large float32 product, GB/s of a copy (read and written), 10^9 exp/s."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((3000, 3000))
    x = jnp.zeros(60_000_000)
    product, copy, exp = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1), jax.jit(jnp.exp)
    small = jnp.zeros(2_000_000)

    def seconds(function, argument):
        return timed(lambda: jax.block_until_ready(function(argument)), repeats)["seconds"]

    return {
        "gflops": 2 * 3000**3 / seconds(product, a) / 1e9,
        "gb_per_s": 2 * x.nbytes / seconds(copy, x) / 1e9,
        "gexp_per_s": small.size / seconds(exp, small) / 1e9,
    }


class Setting:
    """Synthetic interactions of one size, and a model's parameters."""

    def __init__(self, size: str):
        from hlrcml_jax.data import synthetic
        from hlrcml_jax.data.interactions import to_csr

        self.n_users, self.n_items, n = SIZES[size]
        # The walks repeat pairs; so many more steps leave about as many distinct ones.
        table = synthetic.generate(self.n_users, self.n_items, int(1.5 * n), seed=0)
        users, items = table["user"].to_numpy()[:n], table["item"].to_numpy()[:n]
        self.train = to_csr(users, items, (self.n_users, self.n_items))

    def model(self, name: str):
        """(model, its fresh parameters)."""
        import jax

        from hlrcml_jax.config import default_config
        from hlrcml_jax.models import make_model
        from hlrcml_jax.train import init_params

        options = default_config().model
        options.name, options.dim, options.memory_slots = name, DIM, SLOTS
        model = make_model(options)
        params = init_params(jax.random.key(0), model, self.n_users, self.n_items, DIM)
        return model, params


def train(setting: Setting, name: str) -> dict[str, float]:
    """Examples a second of the scanned epoch, draws included; paper's loss and negatives."""
    import jax
    import numpy as np

    from hlrcml_jax import parallel
    from hlrcml_jax.losses import Loss
    from hlrcml_jax.optimizer import make_optimizer, row_radii
    from hlrcml_jax.sampling import Positives, Sampler
    from hlrcml_jax.train import Trainer, init_state

    model, params = setting.model(name)
    optimizer = make_optimizer(2e-4, row_radii(1.0 if model.in_ball else None))
    trainer = Trainer(model, Loss(margin=0.2), optimizer, BATCH, _ROWS.value)
    positives = Positives.of(setting.train)
    n = _STEPS.value * BATCH
    chosen = np.random.default_rng(0).integers(0, setting.train.nnz, n)
    positives = Positives(positives.user_E[chosen], positives.item_E[chosen])
    state = parallel.replicate(jax.device_get(init_state(params, optimizer)))
    prefs = PREFS if model.uses_preferences else 0
    data = parallel.replicate((Sampler.of(setting.train, prefs), positives))
    key = jax.random.wrap_key_data(parallel.replicate(jax.random.key_data(jax.random.key(1))))
    started = time.perf_counter()
    epoch = parallel.pmap(trainer.train_epoch, donate=(0,)).lower(state, *data, key).compile()
    compile_s = time.perf_counter() - started

    def run():
        nonlocal state
        state, loss_T = epoch(state, *data, key)
        parallel.first(loss_T)

    found = timed(run, _REPEATS.value)
    return {"examples_per_s": n / found["seconds"], "compile_s": compile_s} | found


def train_bound(name: str) -> float:
    """Operations of an example: logits of all slots, for two targets, forward and twice back."""
    slots = {"hlr": PREFS + 1, "hlr++": 2 * PREFS + 1, "lrml": 1}.get(name, 0)
    return 2 * 3 * slots * 2 * DIM * SLOTS


def sample(setting: Setting, _: str) -> dict[str, float]:
    """Examples a second that are drawn, with their negatives and preferences."""
    import jax
    import jax.numpy as jnp

    from hlrcml_jax.sampling import Positives, Sampler, draw_batch

    sampler, positives = jax.device_put(
        (Sampler.of(setting.train, PREFS), Positives.of(setting.train))
    )
    order = jnp.arange(setting.train.nnz)
    draw = jax.jit(draw_batch)
    place = jnp.arange(50 * BATCH) % setting.train.nnz
    found = timed(
        lambda: jax.block_until_ready(draw(sampler, positives, jax.random.key(0), order, place)),
        _REPEATS.value,
    )
    return {"examples_per_s": len(place) / found["seconds"]} | found


def score(setting: Setting, name: str) -> dict[str, float]:
    """Milliseconds a user for exact scores of the whole catalogue and the best 20 unknown items."""
    import numpy as np

    from hlrcml_jax import parallel
    from hlrcml_jax.sampling import UserItems
    from hlrcml_jax.scoring import Scorer
    from hlrcml_jax.train import widen

    model, params = setting.model(name)
    params = parallel.replicate(widen(model, params, UserItems.of(setting.train)))
    scorer = Scorer(
        model, setting.train, PREFS if model.uses_preferences else 0, "uniform", 256, seed=0
    )
    users = np.arange(min(_USERS.value, setting.n_users))
    found = timed(lambda: list(scorer.rank(params, users, 20)), _REPEATS.value)
    return {"ms_per_user": 1e3 * found["seconds"] / len(users)} | found


KINDS = {"train": train, "sample": sample, "score": score}


def chosen_cases() -> list[tuple[str, str]]:
    """(kind, model) of every case that the flags ask for."""
    everything = [("sample", "")]
    everything += [(kind, name) for kind in ("train", "score") for name in TRAINED]
    wanted = _CASES.value
    return [
        (kind, name)
        for kind, name in everything
        if "all" in wanted or kind in wanted or f"{kind}:{name}" in wanted
    ]


def main(_) -> None:
    if _DEVICES.value:
        flag = f"--xla_force_host_platform_device_count={_DEVICES.value}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    if _DEVICE.value:
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(_DEVICE.value, _DEVICE.value)
    started = time.perf_counter()
    import jax

    import hlrcml_jax.experiment  # noqa: F401 (what a run imports)

    rates = machine(_REPEATS.value)
    kind = jax.devices()[0].device_kind
    print_line(case="machine", device=kind, devices=jax.local_device_count(), **rates)
    print_line(case="start", seconds=time.perf_counter() - started)
    trace = jax.profiler.trace(_PROFILE.value) if _PROFILE.value else contextlib.nullcontext()
    with trace:
        for size in _SIZE.value:
            setting = Setting(size)
            for kind, name in chosen_cases():
                found = KINDS[kind](setting, name)
                if kind == "train" and train_bound(name):
                    bound = 1e9 * rates["gflops"] / train_bound(name)
                    found["share_of_bound"] = found["examples_per_s"] / bound
                print_line(case=f"{kind}:{name}".rstrip(":"), size=size, **found)


def print_line(**values) -> None:
    """One JSON line, numbers to four digits, with the memory that the process has needed so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    rounded = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in (values | {"peak_gb": peak}).items()
    }
    print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
    sys.exit(app.run(main))
