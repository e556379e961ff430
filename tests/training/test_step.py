"""Training: what one step gives, what devices share, what a run that was stopped loses."""

import dataclasses
import functools

import forked
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from conftest import with_devices

from hlrcml_jax import devices
from hlrcml_jax.models.hlr import HLR
from hlrcml_jax.training.batch import Batch
from hlrcml_jax.training.interactions import Positives
from hlrcml_jax.training.losses import hinge
from hlrcml_jax.training.objective import Objective
from hlrcml_jax.training.optimizer import keep_rows_in_balls, make_optimizer, row_radii
from hlrcml_jax.training.sampling import Sampler, draw_batch
from hlrcml_jax.training.step import Trainer, improves, init_params, init_state, touched_rows

draw = jax.jit(draw_batch)


def known(seed=0):
    rng = np.random.default_rng(seed)
    return scipy.sparse.csr_array(rng.random((30, 50)) < 0.15)


def make_trainer(batch_size, **options):
    return Trainer(
        HLR(8, 4),
        Objective(functools.partial(hinge, margin=0.5), hardest=1),
        make_optimizer(0.01, row_radii(1.0, memory_radius=0.5)),
        batch_size,
        **options,
    )


def run_epochs(trainer, matrix, n_epochs, user_vectors=True, weights="uniform"):
    placement = trainer.placement
    params = init_params(jax.random.key(0), trainer.model, *matrix.shape, 8, user_vectors)
    state = jax.device_get(init_state(params, trainer.optimizer))
    state, parts = placement.place(state), placement.parts
    sampler = Sampler.of(matrix, 5, parts, candidates=3, candidate_weights=weights).place()
    positives = devices.replicate(Positives.of(matrix))
    if parts:
        positives = devices.put(Positives.parts(matrix, *parts))
    key_data = devices.replicate(jax.random.key_data(jax.random.key(9)))
    epoch = devices.pmap(trainer.train_epoch)
    losses = []
    for _ in range(n_epochs):
        state, loss_T = epoch(state, sampler, positives, key_data)
        losses.append(devices.first(loss_T))
    return jax.tree.map(devices.to_host, placement.keep(state)), np.stack(losses)


def test_an_epoch_is_its_steps_one_by_one():
    """The scanned epoch against a loop in Python with plain optax; the last batch is short."""
    matrix, trainer = known(), make_trainer(64)
    state, losses = run_epochs(trainer, matrix, 1)
    assert losses.shape == (1, -(-matrix.nnz // 64))

    params = init_params(jax.random.key(0), trainer.model, *matrix.shape, 8)
    opt_state = trainer.optimizer.init(params)
    sampler, positives = jax.device_put((Sampler.of(matrix, 5, candidates=3), Positives.of(matrix)))
    epoch_key = jax.random.fold_in(jax.random.key(9), 0)

    @jax.jit
    def step(params, opt_state, batch):
        gradients = jax.grad(trainer.objective, argnums=1)(trainer.model, params, batch)
        updates, opt_state = trainer.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    seen = []
    for start in range(0, matrix.nnz, 64):
        places = jnp.arange(start, min(start + 64, matrix.nnz))
        batch = draw(sampler, positives, epoch_key, places)
        seen += list(zip(batch.user_B.tolist(), batch.positive_B.tolist(), strict=True))
        params, opt_state = step(params, opt_state, batch)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert sorted(seen) == sorted(zip(*map(np.ndarray.tolist, matrix.nonzero()), strict=True))


@pytest.mark.parametrize("user_vectors", [True, False])
def test_blocks_of_a_batch_add_up_to_it(user_vectors):
    """Also when the blocks do not divide the batch: 64 in 5 blocks of 13."""
    trainer = make_trainer(64)
    matrix = known()
    params = init_params(jax.random.key(0), trainer.model, *matrix.shape, 8, user_vectors)
    sampler, positives = jax.device_put((Sampler.of(matrix, 5, candidates=3), Positives.of(matrix)))
    batch = draw(sampler, positives, jax.random.key(1), jnp.arange(64))
    whole, whole_gradients = jax.jit(trainer.gradients)(params, batch, {})
    in_blocks = dataclasses.replace(trainer, block_bytes=64 * 5 * 8 * 4 // 5)
    blocked = jax.jit(in_blocks.gradients)(params, batch, {})
    np.testing.assert_allclose(blocked[0], whole, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (blocked[1], whole_gradients)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "user_vectors"),
    [((30, 50), True), ((30, 50), False), ((3000, 50), True), ((30, 9000), True)],
)
def test_lazy_rows_are_dense_rows_without_momentum(shape, user_vectors):
    """A row that a batch does not touch has no gradient, so plain descent leaves it alone.

    The shapes take users and items through every way of finding distinct ids.
    """
    matrix = known().copy()
    matrix.resize(shape)
    dense = make_trainer(16)
    dense = dataclasses.replace(
        dense, optimizer=optax.chain(optax.sgd(0.05), keep_rows_in_balls({"users": 3.0}))
    )
    a, losses_a = run_epochs(dense, matrix, 2, user_vectors)
    b, losses_b = run_epochs(dataclasses.replace(dense, rows="lazy"), matrix, 2, user_vectors)
    np.testing.assert_allclose(losses_a, losses_b, rtol=1e-5, atol=1e-6)
    for name in a.params.keys() - {"model"}:
        np.testing.assert_allclose(a.params[name], b.params[name], atol=1e-6)


@pytest.mark.parametrize("n_users", [30, 3000])
def test_lazy_rows_leave_the_others_and_their_moments(n_users):
    matrix = known().copy()
    matrix.resize((n_users, 50))
    trainer = make_trainer(16, rows="lazy")
    params = init_params(jax.random.key(0), trainer.model, *matrix.shape, 8)
    state = init_state(params, trainer.optimizer)
    state = state.replace(opt_state=jax.tree.map(lambda x: x + 1, state.opt_state))
    sampler, positives = jax.device_put((Sampler.of(matrix, 5, candidates=3), Positives.of(matrix)))
    batch = draw(sampler, positives, jax.random.key(1), jnp.arange(16))
    step = devices.pmap(trainer.train_step)
    after, _ = devices.first(step(*devices.replicate(jax.device_get((state, batch)))))
    real = np.arange(16) != 3
    items = [batch.positive_B[real], batch.negative_BxN[real].ravel()]
    items.append(batch.prefs_BxS[real][batch.mask_BxS[real]])
    for name, ids in {"users": batch.user_B[real], "items": np.concatenate(items)}.items():
        touched = np.isin(np.arange(len(params[name])), ids)
        adam_before, adam_after = state.opt_state[0][0], after.opt_state[0][0]
        for before, now in [
            (params[name], after.params[name]),
            (adam_before.mu[name], adam_after.mu[name]),
            (adam_before.nu[name], adam_after.nu[name]),
        ]:
            changed = (np.asarray(before) != now).any(axis=1)
            assert not changed[~touched].any()
            if now is not after.params[name]:
                assert changed[touched].all()
    assert int(after.opt_state[0][0].count) == 2


def test_masked_preferences_touch_no_row():
    batch = Batch(
        user_B=np.array([4]),
        positive_B=np.array([1]),
        negative_BxN=np.array([[2]]),
        log_weight_BxN=np.zeros((1, 1)),
        prefs_BxS=np.array([[3, 9]]),
        mask_BxS=np.array([[True, False]]),
        weight_B=np.ones(1),
    )
    rows = {"users": 70, "items": 1000}
    find = devices.pmap(lambda batch: touched_rows(batch, rows)[0])
    touched = devices.first(find(devices.replicate(batch)))
    assert set(touched["items"].tolist()) - {1000} == {1, 2, 3}
    assert set(touched["users"].tolist()) - {70} == {4}


def test_the_mean_loss_is_that_of_all_examples():
    matrix, trainer = known(), make_trainer(64)
    params = init_params(jax.random.key(0), trainer.model, *matrix.shape, 8)
    sampler, positives = Sampler.of(matrix, 5, candidates=3), Positives.of(matrix)
    key = jax.random.key(7)
    mean_loss = devices.pmap(trainer.mean_loss)
    state = jax.device_get((params, sampler, positives, jax.random.key_data(key)))
    found = float(devices.first(mean_loss(*devices.replicate(state))))
    every = draw(*jax.device_put((sampler, positives)), key, jnp.arange(matrix.nnz))
    total = jax.jit(functools.partial(trainer.objective, trainer.model))(params, every)
    np.testing.assert_allclose(found, total / matrix.nnz, rtol=1e-5)


def test_training_learns():
    _, losses = run_epochs(make_trainer(64), known(), 30)
    assert losses[-1].sum() < 0.7 * losses[0].sum()


def test_epochs_differ_and_seeds_repeat():
    _, a = run_epochs(make_trainer(64), known(), 2)
    _, b = run_epochs(make_trainer(64), known(), 2)
    np.testing.assert_array_equal(a, b)
    assert (a[0] != a[1]).any()


def test_the_best_is_the_first_of_equals():
    params = init_params(jax.random.key(0), HLR(8, 4), 3, 3, 8)
    state = init_state(params, optax.sgd(0.1))
    # 0.7 is less in single precision, as the best value is kept.
    for epoch, value in enumerate([0.1, 0.3, 0.3, float("nan"), 0.2, 0.7, 0.7], 1):
        state = improves(state, value, epoch)
        assert int(state.best_epoch) == [1, 2, 2, 2, 2, 6, 6][epoch - 1]
    np.testing.assert_allclose(state.best, 0.7)


def test_small_improvements_do_not_count_however_many():
    params = init_params(jax.random.key(0), HLR(8, 4), 3, 3, 8)
    for sign, best_epoch in ((1, 4), (-1, 1)):  # a negative loss gets worse here
        state = init_state(params, optax.sgd(0.1))
        for epoch, value in enumerate([0.5, 0.52, 0.54, 0.56], 1):
            state = improves(state, sign * value, epoch, least=0.1)
        assert int(state.best_epoch) == best_epoch
    state = improves(state, -0.46, 5, least=0.1)
    assert int(state.best_epoch) == 1
    assert int(improves(state, -0.44, 6, least=0.1).best_epoch) == 6


def train_on_all_devices(rows, tables):
    state, losses = run_epochs(
        make_trainer(50, rows=rows, placement=devices.PLACEMENTS[tables]),
        known(),
        3,
        weights="popularity",
    )
    tables = [state.params["users"], state.params["items"], state.opt_state[0][0].mu["items"]]
    # Divided ones are filled up.
    return jax.device_count(), losses, [tables[0][:30], *[table[:50] for table in tables[1:]]]


@pytest.mark.parametrize("rows", ["dense", "lazy"])
def test_any_number_of_devices_does_what_one_does(rows):
    one = forked.call(with_devices(1), train_on_all_devices, rows, "replicated")
    ways = [(8, "replicated")]  # 50 divides by 2, and leaves a rest with 8
    if rows == "lazy":
        ways = [(2, "replicated"), (2, "sharded"), (8, "sharded")]
    for n, tables in ways:
        many = forked.call(with_devices(n), train_on_all_devices, rows, tables)
        assert many[0] == n
        np.testing.assert_allclose(many[1], one[1], rtol=1e-5, atol=1e-5)
        for of_many, of_one in zip(many[2], one[2], strict=True):
            np.testing.assert_allclose(of_many, of_one, atol=1e-4)
