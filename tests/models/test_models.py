"""Properties of the models that need no reference program."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import scipy.sparse

from hlrcml_jax.config import default_config
from hlrcml_jax.models import MODELS, make_model
from hlrcml_jax.models.adacml import AdaCML
from hlrcml_jax.models.closed_form import Solved
from hlrcml_jax.models.relation import normalize
from hlrcml_jax.training.sampling import UserItems
from hlrcml_jax.training.step import init_params, widen

U, D, S, N_ITEMS = 7, 8, 6, 23


def named(name, beta=1.0):
    options = default_config().model
    with options.unlocked():
        options.update(ml_collections.ConfigDict({"name": name, "dim": D, "beta": beta}))
    return options


TRAINED = [name for name in MODELS if not isinstance(make_model(named(name)), Solved)]


def make(name, beta=1.0):
    model = make_model(named(name, beta))
    params = init_params(jax.random.key(0), model, U, N_ITEMS, D)
    known = scipy.sparse.csr_array(np.random.default_rng(0).random((U, N_ITEMS)) < 0.3)
    # Far from zero, so that attention has something to weigh.
    params = jax.tree.map(lambda x: 3.0 * x, params)
    return model, widen(model, params, UserItems.of(known))


@pytest.fixture(params=TRAINED)
def setting(request):
    return make(request.param)


def rows(params, counts, seed=1):
    """Rows of U users with the given numbers of preferences."""
    items = jax.random.randint(jax.random.key(seed), (U, S), 0, N_ITEMS)
    mask = jnp.arange(S)[None] < jnp.asarray(counts)[:, None]
    targets = params["items"][jax.random.randint(jax.random.key(seed + 1), (U,), 0, N_ITEMS)]
    return params["users"], targets, params["items"][items], mask


def test_a_mask_is_a_slice(setting):
    model, params = setting
    for count in range(S + 1):
        user, target, prefs, mask = rows(params, [count] * U)
        bound = model.bind({"params": params["model"]})
        masked = bound(user, target, jnp.where(mask[:, :, None], prefs, 1e6), mask)
        sliced = bound(user, target, prefs[:, :count], mask[:, :count])
        np.testing.assert_allclose(masked, sliced, rtol=1e-5, atol=1e-5)


def test_the_order_of_preferences_does_not_matter(setting):
    model, params = setting
    user, target, prefs, mask = rows(params, [S] * U)
    bound = model.bind({"params": params["model"]})
    np.testing.assert_allclose(
        bound(user, target, prefs, mask), bound(user, target, prefs[:, ::-1], mask), rtol=1e-5
    )


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_finite_without_any_preference(name, beta):
    model, params = make(name, beta)

    def loss(params, mask_row):
        user, target, prefs, mask = rows(params, mask_row)
        return jnp.sum(model.apply({"params": params["model"]}, user, target, prefs, mask))

    gradients = jax.grad(loss)(params, [0] * (U - 1) + [2])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    gradients = jax.grad(loss)(params, [0] * U)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_without_preferences_user_attention_of_hlrpp_is_zero():
    """What is left of HLR++ is its slot 0: the relation of user and target (LRML's)."""
    model, params = make("hlr++")
    user, target, prefs, mask = rows(params, [0] * U)
    memory = params["model"]["memory"]
    relation = jax.nn.softmax((user * target) @ memory["keys"]) @ memory["values"]
    np.testing.assert_allclose(
        model.apply({"params": params["model"]}, user, target, prefs, mask),
        jnp.sum((user + relation - target) ** 2, axis=1),
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["hlr", "hlr++", "lrml"])
def test_a_silent_memory_leaves_cml(name):
    """HLR contains CML: with values of zero the relation vanishes."""
    model, params = make(name)
    params["model"]["memory"]["values"] = jnp.zeros_like(params["model"]["memory"]["values"])
    user, target, prefs, mask = rows(params, range(U))
    np.testing.assert_allclose(
        model.apply({"params": params["model"]}, user, target, prefs, mask),
        jnp.sum((user - target) ** 2, axis=1),
        rtol=1e-6,
    )


def test_the_softmax_survives_huge_logits():
    weights = normalize(jnp.array([[1e30], [5.0], [-1e30]]), jnp.ones((3, 1), bool))
    np.testing.assert_array_equal(weights, [[1.0], [0.0], [0.0]])


def test_without_a_memory_residual_relations_are_adacmls():
    """Up to slot 0, the user, which has no preference to add: exp(0) of the attention's mass."""
    model, params = make("hlr-r")
    params["model"]["memory"]["values"] = jnp.zeros_like(params["model"]["memory"]["values"])
    user, target, prefs, mask = rows(params, range(U))
    found = model.apply({"params": params["model"]}, user, target, prefs, mask)
    zero = jnp.zeros_like(user)[:, None]
    prefs = jnp.concatenate([zero, prefs], axis=1)
    mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    expected = AdaCML(sharpness=model.sharpness)(user, target, prefs, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_sharp_attention_takes_the_nearest_preference():
    """Of preferences on a sphere, the one of the largest product with the target is added alone."""
    key = jax.random.split(jax.random.key(4), 3)
    user, target = jax.random.normal(key[0], (2, U, D))
    prefs = jax.random.normal(key[1], (U, S, D))
    nearest = jnp.argmax(jnp.sum(prefs * target[:, None], axis=2), axis=1)
    expected = jnp.sum((user + prefs[jnp.arange(U), nearest] - target) ** 2, axis=1)
    found = AdaCML(sharpness=1e4)(user, target, prefs, jnp.ones((U, S), bool))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["hlr", "hlr++", "hlr-r", "adacml"])
def test_reasons_are_shares(name):
    model, params = make(name)
    counts = np.array([0, 1, 2, 3, 4, 5, 6])
    user, target, prefs, mask = rows(params, counts)
    found = model.apply({"params": params["model"]}, user, target, prefs, mask, method="reasons")
    assert list(found) == ["share", "item_share"][: 2 if name == "hlr++" else 1]
    for side, share in found.items():
        assert (np.asarray(share)[~np.asarray(mask)] == 0).all()
        total = np.asarray(share).sum(axis=1)
        if name in ("hlr", "hlr-r") or side == "item_share":
            assert ((total >= 0) & (total < 1)).all()  # slot 0 has the rest
        else:
            np.testing.assert_allclose(total, counts > 0, rtol=1e-5)


def test_transcf_knows_the_neighbours():
    """The constants behind each row, against sparse products; one user and one item have none."""
    model, _ = make("transcf")
    dense = np.random.default_rng(1).random((U, N_ITEMS)) < 0.3
    dense[2], dense[:, 5] = False, False
    params = init_params(jax.random.key(1), model, U, N_ITEMS, D)
    found = widen(model, params, UserItems.of(scipy.sparse.csr_array(dense)))
    users = dense @ params["items"] / np.maximum(dense.sum(axis=1, keepdims=True), 1)
    items = dense.T @ params["users"] / np.maximum(dense.sum(axis=0)[:, None], 1)
    np.testing.assert_allclose(found["users"], np.hstack([params["users"], users]), atol=1e-6)
    np.testing.assert_allclose(found["items"], np.hstack([params["items"], items]), atol=1e-6)
    assert (found["users"][2, D:] == 0).all()
