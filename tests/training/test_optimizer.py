"""Rows stay in their balls, and only rows that left them move."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hlrcml_jax.config import make_config
from hlrcml_jax.ranking import metrics
from hlrcml_jax.training import optimizer

# XLA flushes subnormal numbers to zero on the CPU.
COORDINATES = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (5, 3), elements=COORDINATES), st.floats(0.01, 100.0))
def test_projection(table, radius):
    projected = np.asarray(optimizer.project_rows(jnp.asarray(table), radius))
    before, after = np.linalg.norm(table, axis=1), np.linalg.norm(projected, axis=1)
    assert (after <= radius * (1 + 1e-5)).all()
    inside = before < radius * (1 - 1e-5)
    np.testing.assert_array_equal(projected[inside], table[inside])
    np.testing.assert_allclose(
        projected * before[:, None],
        table * np.minimum(before, radius)[:, None],
        rtol=1e-4,
        atol=1e-3,
    )


def params():
    draw = jax.random.normal(jax.random.key(0), (6, 4))
    memory = {"keys": draw.T[:, :3] * 5, "values": draw[:3] * 5}
    return {"users": draw * 5, "items": draw * 5, "model": {"memory": memory}}


@pytest.mark.parametrize("clip_memory", [False, True])
@pytest.mark.parametrize("memory_radius", [None, 0.3])
def test_a_step_ends_in_the_balls(clip_memory, memory_radius):
    radii = optimizer.row_radii(1.5, clip_memory, memory_radius)
    chain = optimizer.make_optimizer(0.1, radii)
    start = params()
    updates, _ = chain.update(jax.tree.map(jnp.ones_like, start), chain.init(start), start)
    end = optax.apply_updates(start, updates)
    longest = jax.tree.map(lambda x: float(jnp.linalg.norm(x, axis=1).max()), end)
    assert longest["users"] <= 1.5 + 1e-5
    assert longest["items"] <= 1.5 + 1e-5
    keys, values = longest["model"]["memory"]["keys"], longest["model"]["memory"]["values"]
    assert (keys <= 1 + 1e-5) == clip_memory
    bound = memory_radius or (1.0 if clip_memory else np.inf)
    assert values <= bound + 1e-5
    if bound == np.inf:
        assert values > 2


def test_models_without_a_memory_have_nothing_to_bound():
    chain = optimizer.make_optimizer(0.1, optimizer.row_radii(1.0, True, 0.3))
    start = params() | {"model": {}}
    updates, _ = chain.update(start, chain.init(start), start)
    assert updates["model"] == {}


def test_frozen_tables_have_no_part_in_the_norm_of_a_gradient():
    """With plain descent after the clip, the items move by their whole small gradient."""
    still = optimizer.make_optimizer(0.1, {}, clip_gradient=1.0, frozen=("users",))
    alone = optimizer.make_optimizer(0.1, {}, clip_gradient=1.0)
    params = {"users": jnp.full((2, 3), 5.0), "items": jnp.ones((2, 3))}
    gradients = {"users": jnp.full((2, 3), 60.0), "items": jnp.full((2, 3), 0.1)}
    updates, state = still.update(gradients, still.init(params), params)
    items = {"items": params["items"]}
    _, expected = alone.update({"items": gradients["items"]}, alone.init(items), items)
    assert not updates["users"].any()
    moments = [
        leaf
        for tree in (state, expected)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if "items" in jax.tree_util.keystr(path)
    ]
    assert len(moments) == 4  # two each
    for found, wanted in zip(moments[:2], moments[2:], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(("n", "n_rows"), [(6, 4), (6, 6), (6, 7), (6, 90), (6, 200)])
def test_distinct_rows_are_a_mask_or_in_ascending_order(n, n_rows):
    """Marked or sorted, whichever is cheaper for so many rows of so large a table."""
    row_N = np.random.default_rng(0).integers(0, n_rows, n)
    row_N[2:4] = row_N[0], n_rows  # one that repeats, and none
    chosen, index_N = map(np.asarray, optimizer.distinct(jnp.asarray(row_N), n_rows))
    present = np.unique(row_N[row_N < n_rows])
    if n >= n_rows:
        np.testing.assert_array_equal(np.flatnonzero(chosen), present)
        np.testing.assert_array_equal(index_N, row_N)
        return
    expected = np.full(n, n_rows)
    expected[: len(present)] = present
    np.testing.assert_array_equal(chosen, expected)
    real = row_N < n_rows
    np.testing.assert_array_equal(chosen[index_N[real]], row_N[real])


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", lambda step: 0.1),
        ("exponential", lambda step: 0.1 * 0.5 ** (step // 10)),
        ("cosine", lambda step: 0.05 * (1 + math.cos(math.pi * min(step / 40, 1)))),
    ],
)
def test_learning_rates_by_step(schedule, expected, warmup):
    """Schedules begin after the warm-up, and their epochs have ten steps."""
    values = {"optimizer.learning_rate": 0.1, "optimizer.schedule": schedule}
    values |= {"optimizer.decay": 0.5, "optimizer.cosine_epochs": 4}
    options = make_config(values | {"optimizer.warmup_epochs": warmup}).optimizer
    rate = optimizer.learning_rate(options, 10)
    for step in (0, 5, 9, 10, 25, 40, 60):
        begun = step - 10 * warmup
        wanted = expected(begun) if begun >= 0 else 0.1 * step / (10 * warmup)
        found = rate(step) if callable(rate) else rate
        assert float(found) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_an_update_without_parameters_is_refused():
    balls = optimizer.keep_rows_in_balls({"users": 1.0})
    updates = {"users": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match="keep_rows_in_balls needs the parameters"):
        balls.update(updates, balls.init(updates))


@pytest.mark.parametrize("module", [optimizer, metrics])
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
