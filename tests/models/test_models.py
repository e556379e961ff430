"""Properties of the models that need no reference program."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import scipy.sparse

from hlrcml_jax import devices
from hlrcml_jax.config import default_config
from hlrcml_jax.models import make_model, model_class
from hlrcml_jax.models.adacml import AdaCML
from hlrcml_jax.models.base import Related
from hlrcml_jax.models.past import Examples, OwnPast, TablePast, of_rows, own_scores
from hlrcml_jax.models.softmax import softmax
from hlrcml_jax.registry import MODELS
from hlrcml_jax.training.interactions import UserItems
from hlrcml_jax.training.step import init_params, widen

U, D, S, N_ITEMS = 7, 8, 6, 23


def named(name, beta=1.0):
    name, _, space = name.partition(" on the ")
    options = {"name": name, "dim": D, "beta": beta, "space": space or "ball", "gates": (0.7,)}
    config = default_config().model
    with config.unlocked():
        config.update(ml_collections.ConfigDict(options))
    return config


ON_SPHERE = ["cml", "lrml", "hlr", "hlr++", "hlr-r", "adacml"]
TRAINED = [name for name in MODELS if not model_class(name).spec.closed_form]
TRAINED += [f"{name} on the sphere" for name in ON_SPHERE]


def make(name, beta=1.0):
    model = make_model(named(name, beta))
    params = init_params(jax.random.key(0), model, U, N_ITEMS, D)
    known = scipy.sparse.csr_array(np.random.default_rng(0).random((U, N_ITEMS)) < 0.3)
    # Far from zero, so that attention has something to weigh.
    params = jax.tree.map(lambda x: 3.0 * x, params)
    return model, widen(model, params, UserItems.of(known))


@functools.partial(jax.jit, static_argnums=0)
def score(model, params, *rows):
    """Scores (B,) of users and one target each."""
    return own_scores(model.bind({"params": params["model"]}), *rows)


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
    for count in (0, 1, S):
        user, target, prefs, mask = rows(params, [count] * U)
        junk = jnp.where(mask[:, :, None], prefs, jnp.nan)
        masked = score(model, params, user, target, junk, mask)
        sliced = score(model, params, user, target, prefs[:, :count], mask[:, :count])
        np.testing.assert_allclose(masked, sliced, rtol=1e-5, atol=1e-5)


def test_the_order_of_preferences_does_not_matter(setting):
    model, params = setting
    user, target, prefs, mask = rows(params, [S] * U)
    np.testing.assert_allclose(
        score(model, params, user, target, prefs, mask),
        score(model, params, user, target, prefs[:, ::-1], mask),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_finite_without_any_preference(name, beta):
    model, params = make(name, beta)

    @jax.jit
    @jax.grad
    def gradient(params, counts):
        user, target, prefs, mask = rows(params, counts)
        return jnp.sum(score(model, params, user, target, prefs, mask))

    gradients = gradient(params, jnp.array([0] * (U - 1) + [2]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    gradients = gradient(params, jnp.array([0] * U))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_without_preferences_user_attention_of_hlrpp_is_zero():
    """What is left of HLR++ is its slot 0: the relation of user and target (LRML's)."""
    model, params = make("hlr++")
    user, target, prefs, mask = rows(params, [0] * U)
    memory = params["model"]["memory"]
    relation = jax.nn.softmax((user * target) @ memory["keys"]) @ memory["values"]
    np.testing.assert_allclose(
        score(model, params, user, target, prefs, mask),
        -jnp.sum((user + relation - target) ** 2, axis=1),
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["hlr", "hlr++", "lrml"])
def test_a_silent_memory_leaves_cml(name):
    """HLR contains CML: with values of zero the relation vanishes."""
    model, params = make(name)
    params["model"]["memory"]["values"] = jnp.zeros_like(params["model"]["memory"]["values"])
    user, target, prefs, mask = rows(params, range(U))
    np.testing.assert_allclose(
        score(model, params, user, target, prefs, mask),
        -jnp.sum((user - target) ** 2, axis=1),
        rtol=1e-6,
    )


def test_the_softmax_survives_huge_logits():
    logits = jnp.array([[[1e30], [5.0], [-1e30]]])
    weights, _ = softmax(logits, jnp.ones((1, 3), bool))
    np.testing.assert_array_equal(weights[0], [[1.0], [0.0], [0.0]])


def test_without_a_memory_residual_relations_are_adacmls():
    """Up to slot 0, the user, which has no preference to add: exp(0) of the attention's mass."""
    model, params = make("hlr-r")
    params["model"]["memory"]["values"] = jnp.zeros_like(params["model"]["memory"]["values"])
    user, target, prefs, mask = rows(params, range(U))
    found = score(model, params, user, target, prefs, mask)
    zero = jnp.zeros_like(user)[:, None]
    prefs = jnp.concatenate([zero, prefs], axis=1)
    mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    adacml = AdaCML(sharpness=model.sharpness)
    expected = own_scores(adacml, user, target, prefs, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_sharp_attention_takes_the_nearest_preference():
    """Of preferences on a sphere, the one of the largest product with the target is added alone."""
    key = jax.random.split(jax.random.key(4), 3)
    user, target = jax.random.normal(key[0], (2, U, D))
    prefs = jax.random.normal(key[1], (U, S, D))
    nearest = jnp.argmax(jnp.sum(prefs * target[:, None], axis=2), axis=1)
    expected = -jnp.sum((user + prefs[jnp.arange(U), nearest] - target) ** 2, axis=1)
    adacml = AdaCML(sharpness=1e4)
    found = own_scores(adacml, user, target, prefs, jnp.ones((U, S), bool))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


ATTENTIVE = ["hlr", "hlr++", "hlr-r", "adacml", "hlr++ on the sphere", "hlr-r on the sphere"]


@pytest.mark.parametrize("name", ATTENTIVE)
def test_reasons_are_shares(name):
    model, params = make(name)
    name = name.removesuffix(" on the sphere")
    counts = np.array([0, 1, 2, 3, 4, 5, 6])
    user, target, prefs, mask = rows(params, counts)
    bound = model.bind({"params": params["model"]})
    attentions = bound.attention(*of_rows(bound, user, target, prefs, mask))
    found = {name: attended.shares()[:, :, 0] for name, attended in attentions.items()}
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


@pytest.mark.parametrize("loops", [True, False])
def test_targets_of_ones_own_and_shared_ones_get_the_same_scores(setting, loops, monkeypatch):
    """T targets at once, with past items from a table, against one target of each user at a time.

    Some users have no past item; each target is scored both ways.
    """
    monkeypatch.setattr(devices, "on_cpu", lambda: loops)
    model, params = setting
    bound = model.bind({"params": params["model"]})
    items = bound.embed(params["items"])
    row = jax.random.randint(jax.random.key(7), (U, S), 0, N_ITEMS)
    mask = jnp.arange(S)[None] < jnp.arange(U)[:, None]
    past = jnp.where(mask[:, :, None], items[row], 0.0)

    @jax.jit
    def both():
        users = bound.users(params["users"], past, mask)
        table = TablePast(bound.relate(items, items[:5]), mask, items, row)
        shared = bound.scores(users, bound.meet(users, items[None, :5]), items[None, :5], table)
        targets = [jnp.tile(params["items"][number], (U, 1)) for number in range(5)]
        rows = params["users"], params["items"][row], mask
        return shared, [own_scores(bound, rows[0], target, *rows[1:]) for target in targets]

    shared, own = both()
    np.testing.assert_allclose(shared, np.stack(own, axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [1.0, 0.6])
@pytest.mark.parametrize("t", [1, 3])
def test_lookups_have_the_derivatives_of_gathered_relations(t, beta, monkeypatch):
    """On a CPU relations are looked up slot by slot, with a derivative of their own."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = (9, 4, 3), (U, 4, t), (U, 1, 3), (U, S, 3)
    values = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    row = jax.random.randint(keys[4], (U, S), 0, 9)
    mask = jnp.arange(S)[None] < jnp.arange(U)[:, None]

    def total(relation, query, first, prior):
        past = TablePast(Related(relation), mask, relation[:, :, 0], row)
        with_first = past.attend(query, beta, first, prior)
        return sum(jnp.sum(jnp.sin(x)) for x in (*with_first, *past.attend(query, beta)))

    found = []
    for loops in (True, False):
        monkeypatch.setattr(devices, "on_cpu", lambda loops=loops: loops)
        derivatives = jax.value_and_grad(lambda *values: total(*values), argnums=(0, 1, 2, 3))
        found.append(jax.jit(derivatives)(*values))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_past_of_a_user_attends_with_many_targets_as_with_each():
    """Relations that no target changes (HLR++'s item attention), for one target and for several."""
    keys = jax.random.split(jax.random.key(1), 3)
    past = OwnPast(Related(jax.random.normal(keys[0], (U, S, 4))), jnp.ones((U, S), bool))
    query, first = jax.random.normal(keys[1], (U, 4, 3)), jax.random.normal(keys[2], (U, 1, 3))
    together = past.attend(query, 1.0, first)
    for n in range(3):
        one = slice(n, n + 1)
        alone = past.attend(query[..., one], 1.0, first[..., one])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[..., one], b, rtol=1e-5, atol=1e-6)


def textbook(name, params, user, target, prefs, mask):
    """The score of one user and one target on the sphere, in NumPy, from the formulas."""
    length_one = lambda x: x / max(np.linalg.norm(x), 1e-6)  # noqa: E731
    past = [length_one(row[:-1]) for row, real in zip(prefs, mask, strict=True) if real]
    u = length_one(user)
    t, bias = length_one(target[:-1]), 0.1 * target[-1]
    relation = np.zeros(D)
    if name != "cml" and name != "adacml":
        keys, values = params["model"]["memory"]["keys"], params["model"]["memory"]["values"]

        def rel(a, b):
            weight = np.exp((a * b) @ keys)
            return weight / weight.sum() @ values

    def attend(vectors, logits):
        weight = np.exp(logits) / np.exp(logits).sum()
        return weight @ np.array(vectors)

    if name == "lrml":
        relation = rel(u, t)
    elif name == "hlr":
        slots = [rel(t, u), *(rel(t, p) for p in past)]
        relation = attend(slots, [r @ u for r in slots])
    elif name == "hlr++":
        slots = [rel(t, p) for p in past]
        relation = attend(slots, [r @ u for r in slots]) if past else 0.0
        slots = [rel(u, t), *(rel(u, p) for p in past)]
        relation = relation + attend(slots, [s @ t for s in slots])
    elif name == "hlr-r":
        slots = [rel(t, u), *(rel(t, p) for p in past)]
        logits = [slots[0] @ u, *(r @ u + p @ t for r, p in zip(slots[1:], past, strict=True))]
        relation = attend(
            [slots[0], *(r + p for r, p in zip(slots[1:], past, strict=True))], logits
        )
    elif name == "adacml" and past:
        relation = attend(past, [p @ t for p in past])
    return (u + 0.7 * relation) @ t + bias


@pytest.mark.parametrize("name", ON_SPHERE)
def test_on_the_sphere_each_model_is_its_formula(name):
    """For targets of one's own, one and several; with no past item and with some."""
    model, params = make(f"{name} on the sphere")
    params["model"]["relation_gate"] = jnp.array(0.7)
    params["users"] = jax.random.normal(jax.random.key(3), (U, D))
    user, _, prefs, mask = rows(params, range(U))
    targets = params["items"][jax.random.randint(jax.random.key(4), (U, 3), 0, N_ITEMS)]
    bound = model.bind({"params": params["model"]})

    @jax.jit
    def several():
        examples = Examples.of(bound, user, bound.embed(prefs), mask)
        return bound.scores(*examples.with_targets(bound, bound.embed(targets)))

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    arrays = [np.asarray(x, np.float64) for x in (user, targets, prefs)]
    expected = [
        [textbook(name, params, u, t, p, m) for t in ts]
        for u, ts, p, m in zip(*arrays, np.asarray(mask), strict=True)
    ]
    np.testing.assert_allclose(several(), expected, rtol=1e-4, atol=1e-4)
    one = score(model, params, user, targets[:, 0], prefs, mask)
    np.testing.assert_allclose(one, np.array(expected)[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ON_SPHERE)
def test_a_closed_gate_leaves_cml_and_learns_nothing(name):
    model, params = make(f"{name} on the sphere")
    params["model"]["relation_gate"] = jnp.array(0.0)
    arguments = rows(params, range(U))
    closed = score(model, params, *arguments)
    np.testing.assert_array_equal(closed, score(model.without_relation(), params, *arguments))
    cml = make_model(named("cml on the sphere"))
    np.testing.assert_array_equal(closed, score(cml, params, *arguments))
    params["model"]["relation_gate"] = jnp.array(0.7)
    assert name == "cml" or not np.allclose(closed, score(model, params, *arguments))
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(score(model, params, *arguments) ** 2)))
    assert gradient(params)["model"]["relation_gate"] == 0.0


def test_on_the_sphere_a_user_is_an_embedding_and_the_mean_of_its_items():
    model, params = make("hlr on the sphere")
    user, _, prefs, mask = rows(params, [0, 1, 2, 3, 4, 5, 6])
    user = jax.random.normal(jax.random.key(3), (U, D))
    mean_BxD = np.zeros((U, D))
    for b in range(1, U):
        past = np.asarray(prefs)[b, :b, :-1]
        mean_BxD[b] = (past / np.linalg.norm(past, axis=1, keepdims=True)).mean(axis=0)
    prefs = model.embed(prefs)
    np.testing.assert_allclose(model.represent(user, prefs, mask), user + mean_BxD, atol=1e-5)
    np.testing.assert_allclose(model.represent(None, prefs, mask), mean_BxD, atol=1e-5)
