"""Which negative is chosen, and what counts."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import scipy.sparse

from hlrcml_jax.config import default_config
from hlrcml_jax.losses import Batch, TripletLoss
from hlrcml_jax.models import make_model
from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.hlr import HLR
from hlrcml_jax.sampling import UserItems
from hlrcml_jax.train import constants_of, init_params

LINE = {  # on a line: user 0 at 0, items at 1, 2, 3 and 4
    "users": jnp.array([[0.0]]),
    "items": jnp.array([[1.0], [2.0], [3.0], [4.0]]),
    "model": {},
}


def batch(negatives, positive=1, weight=1.0):
    return Batch(
        user_B=jnp.array([0]),
        positive_B=jnp.array([positive]),
        negative_BxN=jnp.array([negatives]),
        prefs_BxS=jnp.zeros((1, 0), int),
        mask_BxS=jnp.zeros((1, 0), bool),
        weight_B=jnp.array([weight]),
    )


def test_hinge_by_hand():
    # d(u, positive) = 4; the negatives are at 1, 9 and 16; margin 6.
    assert TripletLoss(6.0)(CML(), LINE, batch([0])) == 6 + 4 - 1
    assert TripletLoss(6.0)(CML(), LINE, batch([2])) == 6 + 4 - 9
    assert TripletLoss(6.0)(CML(), LINE, batch([3])) == 0


def test_candidates_are_averaged_or_the_hardest_is_kept():
    candidates = batch([3, 0, 2])
    mean = TripletLoss(6.0, "uniform")(CML(), LINE, candidates)
    np.testing.assert_allclose(mean, (0 + 9 + 1) / 3, rtol=1e-6)
    assert TripletLoss(6.0, "hardest")(CML(), LINE, candidates) == 9


def test_examples_that_fill_a_batch_weigh_nothing():
    loss = jax.value_and_grad(TripletLoss(6.0), argnums=1)
    value, gradient = loss(CML(), LINE, batch([0], weight=0.0))
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def hlr_setting(n_candidates):
    model = HLR(dim=5, memory_slots=3)
    params = init_params(jax.random.key(3), model, 4, 30, 5)
    draw = lambda seed, *shape: jax.random.randint(jax.random.key(seed), shape, 0, 30)  # noqa: E731
    many = Batch(
        jnp.arange(4), draw(0, 4), draw(1, 4, n_candidates), draw(2, 4, 6), jnp.ones((4, 6), bool),
        jnp.ones(4),
    )  # fmt: skip
    return model, params, many


def test_the_hardest_is_judged_by_the_positives_relation_and_counted_by_its_own():
    model, params, many = hlr_setting(8)
    bound = model.bind({"params": params["model"]})
    prefs = params["items"][many.prefs_BxS]
    history = bound.history(params["users"], prefs, many.mask_BxS)
    relation = bound.relation(params["users"], params["items"][many.positive_B], history)
    moved = bound.translate(params["users"], relation)
    candidates = params["items"][many.negative_BxN]
    nearest = jnp.argmin(jnp.sum((moved[:, None] - candidates) ** 2, axis=-1), axis=1)
    chosen = many.replace(negative_BxN=many.negative_BxN[jnp.arange(4), nearest][:, None])
    hardest = jax.value_and_grad(TripletLoss(0.5, "hardest"), argnums=1)(model, params, many)
    single = jax.value_and_grad(TripletLoss(0.5), argnums=1)(model, params, chosen)
    for a, b in zip(jax.tree.leaves(hardest), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("copy_relation", [False, True])
def test_uniform_is_the_mean_of_single_negatives(copy_relation):
    model, params, many = hlr_setting(4)
    loss = TripletLoss(0.5, copy_relation=copy_relation)
    singles = [
        loss(model, params, many.replace(negative_BxN=many.negative_BxN[:, n : n + 1]))
        for n in range(4)
    ]
    np.testing.assert_allclose(loss(model, params, many), np.mean(singles), rtol=1e-5)


@pytest.mark.parametrize("name", ["hlr", "hlr++", "lrml", "transcf", "adacml", "bpr"])
def test_gradients_agree_with_finite_differences(name):
    with jax.enable_x64(True):
        options = default_config().model
        options.name, options.dim, options.memory_slots = name, 5, 3
        model, many = make_model(options), hlr_setting(2)[2]
        params = init_params(jax.random.key(3), model, 4, 30, 5)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        known = UserItems.of(scipy.sparse.csr_array(np.eye(4, 30, dtype=bool)))
        constants = constants_of(model, params, known)
        loss = jax.jit(lambda params: TripletLoss(0.5)(model, params, many, constants))
        jax.test_util.check_grads(loss, (params,), order=1, modes=["rev"], rtol=1e-5)
