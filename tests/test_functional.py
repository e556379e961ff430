"""The public functions for a training loop of one's own."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

from hlrcml_jax import functional as F
from hlrcml_jax.models import model_class
from hlrcml_jax.models.past import own_scores
from hlrcml_jax.registry import MODELS
from hlrcml_jax.training import losses, optimizer
from hlrcml_jax.training.step import Trainer


@pytest.mark.parametrize("module", [F, losses, optimizer], ids=lambda module: module.__name__)
def test_the_examples_of_docstrings_run(module):
    found = doctest.testmod(module, extraglobs={"jax": jax, "jnp": jax.numpy, "optax": optax})
    assert found.attempted > 0
    assert found.failed == 0


@pytest.fixture(scope="module")
def interactions():
    return scipy.sparse.csr_array(np.random.default_rng(0).random((12, 20)) < 0.3)


def test_an_epoch_has_each_interaction_once(interactions):
    sampler = F.make_sampler(interactions, max_prefs=3, candidates=2)
    seen = []
    for batch in F.batches(sampler, jax.random.key(1), batch_size=16):
        real = np.asarray(batch.weight_B) > 0
        seen += zip(np.asarray(batch.user_B)[real], np.asarray(batch.positive_B)[real], strict=True)
        dense = interactions.toarray()
        assert not dense[np.asarray(batch.user_B)[:, None], batch.negative_BxN][real].any()
    assert len(seen) == len(set(seen)) == interactions.nnz


def test_a_step_is_the_trainers(interactions):
    model = model_class("hlr")(dim=4, memory_slots=3)
    objective = F.Objective(functools.partial(F.hinge, margin=0.5))
    adam = F.make_optimizer(1e-2, F.row_radii(1.0))
    params = F.init_params(jax.random.key(0), model, *interactions.shape, dim=4)
    state = F.init_state(params, adam)
    sampler = F.make_sampler(interactions, max_prefs=3)
    batch = next(F.batches(sampler, jax.random.key(1), batch_size=16))
    found = jax.jit(functools.partial(F.train_step, model, objective, adam))(state, batch)
    expected = jax.jit(Trainer(model, objective, adam, 16).train_step)(state, batch)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", [name for name in MODELS if not model_class(name).spec.closed_form]
)
def test_scores_are_those_of_each_pair(name, interactions):
    made, options = model_class(name), {"dim": 4, "memory_slots": 3}
    model = made(**{key: options[key] for key in options if key in made.__dataclass_fields__})
    sampler = F.make_sampler(interactions, max_prefs=3)
    params = F.init_params(jax.random.key(0), model, *interactions.shape, dim=4)
    params = F.widen(model, params, sampler.known)
    users, items = np.arange(5), np.arange(7)
    prefs, mask = F.preferences(sampler, jax.random.key(2), users)
    assert interactions.toarray()[users[:, None], prefs][np.asarray(mask)].all()
    found = F.scores(model, params, users, items, prefs, mask)
    bound = model.bind({"params": params["model"]})

    @jax.jit
    def score(item):
        target = jnp.tile(params["items"][item], (5, 1))
        return own_scores(bound, params["users"][users], target, params["items"][prefs], mask)

    for item in items:
        np.testing.assert_allclose(found[:, item], score(item), rtol=1e-5, atol=1e-5)
