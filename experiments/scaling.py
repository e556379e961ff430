"""The cost model of scaling.md beside the compiler's memory plan and measured times.

python experiments/scaling.py --devices=8 --users=4000000 --items=1000000 --interactions=4000000

Trains one epoch of synthetic interactions on simulated CPU devices and prints one JSON line: bytes
per device by the model and by the compiler, bytes of collectives per step likewise, seconds and the
mean loss. Devices share the machine's cores, so times say nothing about real ones.
"""

import json
import os
import pathlib
import re
import resource
import time

from absl import app, flags

_DEVICES = flags.DEFINE_integer("devices", 8, "Number of simulated devices (P).")
_TABLES = flags.DEFINE_enum("tables", "sharded", ["sharded", "replicated"], "parallel.tables.")
_USERS = flags.DEFINE_integer("users", 20_000, "Number of users (U).")
_ITEMS = flags.DEFINE_integer("items", 10_000, "Number of items (I).")
_INTERACTIONS = flags.DEFINE_integer("interactions", 200_000, "Interactions (E), with repetitions.")
_DIM = flags.DEFINE_integer("dim", 32, "Length of the vectors (D).")
_PREFS = flags.DEFINE_integer("prefs", 20, "Most past items of a user (S).")
_BATCH = flags.DEFINE_integer("batch", 2000, "Batch size over all devices (B).")


def touched(users, items, prefs, batch, candidates=1) -> tuple[int, int]:
    """(ids in a step, rows that it touches at most)."""
    named = batch * (2 + candidates + prefs)
    return named, min(batch, users) + min(named - batch, items)


def bytes_of_device(users, items, interactions, dim, prefs, batch, parts) -> dict[str, float]:
    """Memory of a device in training, with tables in `parts` shards; see scaling.md."""
    named, rows = touched(users, items, prefs, batch)
    order = 4 * interactions
    # Parameters, two moments and a gradient of each row; and the ids with their rows.
    step = 4 * 4 * dim * rows + 4 * 4 * named
    return {
        "tables": 3 * 4 * dim * (users + items) / parts,
        "interactions": (4 * (2 + 1) * interactions + 4 * users) / parts,
        # The order is drawn by sorting, before the first step.
        "work": max(5 * order, order + step),
    }


def bytes_of_collectives(users, items, dim, slots, prefs, batch, sharded) -> float:
    """Bytes of the collectives in a step; see scaling.md."""
    named, rows = touched(users, items, prefs, batch)
    # Ids, and gradients of rows, keys, values and loss.
    everywhere = 4 * named + 4 * (dim * rows + 2 * dim * slots + 1)
    # Of sharded tables, their rows; of sharded interactions, the examples that were drawn.
    return everywhere + (4 * dim * rows + 4 * batch * (5 + 2 * prefs) if sharded else 0)


def of_compiler(compiled) -> tuple[int, int]:
    """(bytes per device, bytes of the collectives in a step) of a compiled epoch."""
    found = compiled.memory_analysis()
    total = found.argument_size_in_bytes + found.temp_size_in_bytes
    total += found.output_size_in_bytes - found.alias_size_in_bytes
    width = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
    moved = 0
    for line in compiled.as_text().splitlines():
        if match := re.search(r" = (.*?) (all-reduce|all-gather)(-start)?\(", line):
            for kind, shape in re.findall(r"(f32|s32|u32|pred)\[([\d,]*)\]", match[1]):
                size = 1
                for n in filter(None, shape.split(",")):
                    size *= int(n)
                moved += width[kind] * size
    return total, moved


def main(_) -> None:
    flag = f"--xla_force_host_platform_device_count={_DEVICES.value}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np
    import polars as pl

    from hlrcml_jax import devices
    from hlrcml_jax.config import make_config, validate
    from hlrcml_jax.data.dataset import Dataset, to_csr
    from hlrcml_jax.runs import build
    from hlrcml_jax.runs.run import Run

    config = make_config(
        {
            "model.dim": _DIM.value,
            "model.max_prefs": _PREFS.value,
            "train.batch_size": _BATCH.value,
            "optimizer.rows": "lazy",
            "parallel.tables": _TABLES.value,
        }
    )
    rng = np.random.default_rng(0)
    shape = (_USERS.value, _ITEMS.value)
    # The square makes some items popular.
    user_E = rng.integers(0, shape[0], _INTERACTIONS.value)
    item_E = (rng.random(_INTERACTIONS.value) ** 2 * shape[1]).astype(int)
    train, nothing = to_csr(user_E, item_E, shape), to_csr(*np.empty((2, 0), int), shape)
    names = [pl.int_range(n, eager=True) for n in shape]
    run = Run(
        validate(config), Dataset(train, nothing, nothing, nothing, *names), pathlib.Path("unused")
    )
    state = build.placement_of(run).place(build.initial_state(run))
    data = (build.make_sampler(run), build.make_positives(run, "train"))
    key_data = devices.replicate(jax.random.key_data(jax.random.key(1)))
    compiled = devices.compiled(
        build.make_trainer(run).train_epoch, (state, *data, key_data), donate=(0,)
    )
    started = time.perf_counter()
    state, loss_T = compiled(state, *data, key_data)
    loss = float(devices.first(loss_T).sum()) / train.nnz
    seconds = time.perf_counter() - started
    n_devices, sharded = _DEVICES.value, _TABLES.value == "sharded"
    of_rows = (_PREFS.value, _BATCH.value)
    parts = bytes_of_device(*shape, train.nnz, _DIM.value, *of_rows, n_devices if sharded else 1)
    expected = bytes_of_collectives(
        *shape, _DIM.value, config.model.memory_slots, *of_rows, sharded
    )
    total, moved = of_compiler(compiled)
    found = {
        "devices": n_devices,
        "tables": _TABLES.value,
        "mb_by_part": {name: round(n / 1e6, 1) for name, n in parts.items()},
        "mb_of_device": round(sum(parts.values()) / 1e6, 1),
        "mb_by_compiler": round(total / 1e6, 1),
        "ratio": round(total / sum(parts.values()), 3),
        "collectives_kb": round(expected / 1e3, 1) if n_devices > 1 else 0.0,
        "collectives_kb_by_compiler": round(moved / 1e3, 1) if n_devices > 1 else 0.0,
        "peak_gb_of_process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "seconds": round(seconds, 1),
        "loss": loss,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    app.run(main)
