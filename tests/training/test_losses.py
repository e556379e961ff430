"""Which negative is chosen, and what counts."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import scipy.sparse

from hlrcml_jax import devices
from hlrcml_jax.config import default_config
from hlrcml_jax.models import make_model, model_class
from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.hlr import HLR
from hlrcml_jax.models.past import Examples
from hlrcml_jax.registry import LOSSES, MODELS
from hlrcml_jax.training.batch import Batch
from hlrcml_jax.training.interactions import UserItems
from hlrcml_jax.training.losses import hinge, softmax
from hlrcml_jax.training.objective import Objective
from hlrcml_jax.training.step import constants_of, init_params

LINE = {  # on a line: user 0 at 0, items at 1, 2, 3 and 4
    "users": jnp.array([[0.0]]),
    "items": jnp.array([[1.0], [2.0], [3.0], [4.0]]),
    "model": {},
}


def hinged(margin, **options):
    return Objective(functools.partial(hinge, margin=margin), **options)


def softened(temperature, **options):
    return Objective(functools.partial(softmax, temperature=temperature), **options)


def of_kind(kind, margin, **options):
    return softened(0.3, **options) if kind == "softmax" else hinged(margin, **options)


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradient(objective, model, params, batch, constants=None):
    """Compiled as one program: each operation on its own would be one."""
    return jax.value_and_grad(objective, argnums=1)(model, params, batch, constants)


def batch(negatives, positive=1, weight=1.0):
    return Batch(
        user_B=jnp.array([0]),
        positive_B=jnp.array([positive]),
        negative_BxN=jnp.array([negatives]),
        log_weight_BxN=jnp.zeros((1, len(negatives))),
        prefs_BxS=jnp.zeros((1, 0), int),
        mask_BxS=jnp.zeros((1, 0), bool),
        weight_B=jnp.array([weight]),
    )


def test_hinge_by_hand():
    # d(u, positive) = 4; the negatives are at 1, 9 and 16; margin 6.
    assert hinged(6.0)(CML(), LINE, batch([0])) == 6 + 4 - 1
    assert hinged(6.0)(CML(), LINE, batch([2])) == 6 + 4 - 9
    assert hinged(6.0)(CML(), LINE, batch([3])) == 0


def test_candidates_are_averaged_or_the_hardest_is_kept():
    candidates = batch([3, 0, 2])
    mean = hinged(6.0)(CML(), LINE, candidates)
    np.testing.assert_allclose(mean, (0 + 9 + 1) / 3, rtol=1e-6)
    assert hinged(6.0, hardest=1)(CML(), LINE, candidates) == 9


def test_softmax_by_hand():
    """z = 4 - 9 and 4 - 16, at temperature 2; the candidate at 1 is an item of the user."""
    candidates = batch([0, 2, 3]).replace(log_weight_BxN=jnp.array([[-jnp.inf, 0, 0]]))
    expected = np.log(1 + np.exp((4 - 9) / 2) + np.exp((4 - 16) / 2))
    found = softened(2.0)(CML(), LINE, candidates)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weighted_candidates_count_as_often():
    """A candidate of weight 3 is three of weight 1."""
    once = batch([0, 2]).replace(log_weight_BxN=jnp.log(jnp.array([[1.0, 3.0]])))
    loss = softened(2.0)
    np.testing.assert_allclose(
        loss(CML(), LINE, once), loss(CML(), LINE, batch([0, 2, 2, 2])), rtol=1e-6
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_several_hardest_candidates_are_those_nearest(kind):
    """The user is at 0; of the items at 4, 1 and 3 those at 1 and 3 are nearest."""
    own, loss = batch([3, 0, 2]), of_kind(kind, 6.0, hardest=2)
    shared = own.replace(shared=True)
    expected = of_kind(kind, 6.0)(CML(), LINE, batch([0, 2]))
    for candidates in (own, shared):
        np.testing.assert_allclose(loss(CML(), LINE, candidates), expected, rtol=1e-6)


def test_users_made_of_their_items():
    """sqrt(2) times the mean of two items, (1 + 3) / sqrt(2); the third is masked."""
    prefs = {"prefs_BxS": jnp.array([[0, 2, 3]]), "mask_BxS": jnp.array([[True, True, False]])}
    example = batch([3]).replace(**prefs)
    items = {name: table for name, table in LINE.items() if name != "users"}
    user = 4 / np.sqrt(2)
    expected = 6 + (user - 2) ** 2 - (user - 4) ** 2
    np.testing.assert_allclose(hinged(6.0)(CML(), items, example), expected, rtol=1e-6)
    nobody = example.replace(mask_BxS=jnp.zeros((1, 3), bool))
    assert hinged(6.0)(CML(), items, nobody) == hinged(6.0)(CML(), LINE, batch([3]))


def test_items_of_the_user_do_not_count():
    candidates = batch([3, 0, 2]).replace(log_weight_BxN=jnp.array([[0, -jnp.inf, 0]]))
    np.testing.assert_allclose(hinged(6.0)(CML(), LINE, candidates), (0 + 1) / 2)
    assert hinged(6.0, hardest=1)(CML(), LINE, candidates) == 1
    nothing = candidates.replace(log_weight_BxN=jnp.full((1, 3), -jnp.inf))
    for loss in (hinged(6.0), hinged(6.0, hardest=1), softened(0.3)):
        value, gradient = value_and_gradient(loss, CML(), LINE, nothing)
        assert value == 0
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_examples_that_fill_a_batch_weigh_nothing():
    value, gradient = value_and_gradient(hinged(6.0), CML(), LINE, batch([0], weight=0.0))
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def hlr_setting(n_candidates):
    model = HLR(dim=5, memory_slots=3)
    params = init_params(jax.random.key(3), model, 4, 30, 5)
    draw = lambda seed, *shape: jax.random.randint(jax.random.key(seed), shape, 0, 30)  # noqa: E731
    many = Batch(
        jnp.arange(4), draw(0, 4), draw(1, 4, n_candidates), jnp.zeros((4, n_candidates)),
        draw(2, 4, 6), jnp.ones((4, 6), bool), jnp.ones(4),
    )  # fmt: skip
    return model, params, many


def only(batch, negative_Bx1):
    """The batch with one candidate an example."""
    return batch.replace(negative_BxN=negative_Bx1, log_weight_BxN=jnp.zeros((4, 1)))


def test_the_hardest_is_judged_by_the_positives_relation_and_counted_by_its_own():
    model, params, many = hlr_setting(8)
    bound = model.bind({"params": params["model"]})
    prefs = params["items"][many.prefs_BxS]
    examples = Examples.of(bound, params["users"], prefs, many.mask_BxS)
    moved = bound.moved(*examples.with_targets(bound, params["items"][many.positive_B][:, None]))
    candidates = params["items"][many.negative_BxN]
    nearest = jnp.argmin(jnp.sum((moved - candidates) ** 2, axis=-1), axis=1)
    chosen = many.replace(
        negative_BxN=many.negative_BxN[jnp.arange(4), nearest][:, None],
        log_weight_BxN=many.log_weight_BxN[:, :1],
    )
    hardest = value_and_gradient(hinged(0.5, hardest=1), model, params, many)
    single = value_and_gradient(hinged(0.5), model, params, chosen)
    for a, b in zip(jax.tree.leaves(hardest), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["bpr", "transcf"])
def test_penalties_do_not_grow_with_the_number_of_negatives(name):
    with jax.enable_x64(True):
        (model, params, constants), many = setting_of(name), hlr_setting(4)[2]
        once = only(many, many.negative_BxN[:, :1])
        four = many.replace(negative_BxN=jnp.tile(many.negative_BxN[:, :1], (1, 4)))
        values = [
            value_and_gradient(hinged(0.5), model, params, batch, constants)[0]
            for batch in (once, four)
        ]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-9)


@pytest.mark.parametrize("copy_relation", [False, True])
def test_uniform_is_the_mean_of_single_negatives(copy_relation):
    model, params, many = hlr_setting(4)
    loss = functools.partial(value_and_gradient, hinged(0.5, copy_relation=copy_relation))
    singles = [
        loss(
            model,
            params,
            many.replace(
                negative_BxN=many.negative_BxN[:, n : n + 1],
                log_weight_BxN=many.log_weight_BxN[:, :1],
            ),
        )[0]
        for n in range(4)
    ]
    np.testing.assert_allclose(loss(model, params, many)[0], np.mean(singles), rtol=1e-5)


BETA_AND_LOOPS = [(0.6, True), (0.6, False), (1.0, False)]
FROM_ITEMS = [name for name in MODELS if model_class(name).spec.users_from_items]
NAMES = ["cml", "hlr", "hlr++", "hlr-r", "lrml", "transcf", "adacml", "bpr"]


def setting_of(name, beta=1.0):
    """In double precision: (model, parameters, constants)."""
    options = default_config().model
    options.name, options.dim, options.memory_slots, options.beta = name, 5, 3, beta
    model = make_model(options)
    params = init_params(jax.random.key(3), model, 4, 30, 5)
    params = jax.tree.map(lambda x: 2 * x.astype(jnp.float64), params)
    known = UserItems.of(scipy.sparse.csr_array(np.eye(4, 30, dtype=bool)))
    return model, params, constants_of(model, params, known)


@pytest.mark.parametrize(
    ("name", "users"),
    [(name, "vectors") for name in NAMES] + [(name, "items") for name in FROM_ITEMS],
)
def test_gradients_agree_with_finite_differences(name, users):
    with jax.enable_x64(True):
        (model, params, constants), many = setting_of(name), hlr_setting(2)[2]
        if users == "items":
            del params["users"]
        loss = jax.jit(lambda params: hinged(0.5)(model, params, many, constants))
        jax.test_util.check_grads(loss, (params,), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "beta", "loops", "kind"),
    [(name, 1.0, True, "hinge") for name in NAMES]
    + [(name, *case, "hinge") for name in ("hlr", "hlr++") for case in BETA_AND_LOOPS]
    + [(name, 1.0, True, "softmax") for name in ("cml", "hlr")],
)
def test_shared_candidates_are_candidates(name, beta, loops, kind, monkeypatch):
    """One list for the batch gives what the same list gives to each example, also its gradient.

    Preferences are masked, one example has none, and one may not use some of the candidates.
    """
    monkeypatch.setattr(devices, "on_cpu", lambda: loops)
    with jax.enable_x64(True):
        (model, params, constants), many = setting_of(name, beta), hlr_setting(7)[2]
        many = many.replace(
            mask_BxS=jnp.arange(6)[None] < jnp.array([6, 0, 3, 1])[:, None],
            log_weight_BxN=many.log_weight_BxN.at[1, 2:5].set(-jnp.inf),
        )
        shared = many.replace(negative_BxN=many.negative_BxN[:1], shared=True)
        own = many.replace(negative_BxN=jnp.broadcast_to(many.negative_BxN[0], (4, 7)))
        model_loss = of_kind(kind, 3.0)
        of_own, of_shared = (
            value_and_gradient(model_loss, model, params, batch, constants)
            for batch in (own, shared)
        )
        for a, b in zip(jax.tree.leaves(of_own), jax.tree.leaves(of_shared), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)


def test_sampled_negatives_estimate_the_sum_over_all():
    """Over all offsets, whatever relations the negatives have of their own; the user's are out."""
    options = default_config().model
    options.name, options.dim, options.memory_slots, options.space = "hlr-r", 5, 3, "sphere"
    model, n, n_sampled, n_offsets = make_model(options), 9, 3, 2000
    params = init_params(jax.random.key(3), model, 4, 30, 5)
    params["items"] = params["items"].at[:, -1].set(jax.random.normal(jax.random.key(4), (30,)))
    log_weight_N = jnp.where(jnp.arange(n) == 2, -jnp.inf, jnp.linspace(-1.0, 1.0, n))
    item_N = jax.random.randint(jax.random.key(5), (n,), 0, 30)
    many = batch(item_N.tolist()).replace(
        prefs_BxS=jnp.array([[3, 8, 4]]), mask_BxS=jnp.ones((1, 3), bool)
    )
    many = jax.tree.map(lambda x: jnp.repeat(x, n_offsets, axis=0), many)
    many = many.replace(
        log_weight_BxN=jnp.tile(log_weight_N, (n_offsets, 1)),
        uniform_B=(jnp.arange(n_offsets) + 0.5) / n_offsets,
    )
    shared = many.replace(negative_BxN=item_N[None], shared=True)
    objective = softened(0.3, sampled=n_sampled)

    @jax.jit
    def total(batch):
        """sum_n w_n exp(s_n / temperature) of each example."""
        bound = model.bind({"params": params["model"]})
        items_IxD, users = bound.embed(params["items"]), params["users"][batch.user_B]
        examples = Examples.of(bound, users, items_IxD[batch.prefs_BxS], batch.mask_BxS)
        targets = items_IxD[batch.negative_BxN]
        score_BxN = bound.scores(*examples.with_targets(bound, targets))
        return jnp.sum(jnp.exp(score_BxN / 0.3 + batch.log_weight_BxN), axis=1)

    choose = jax.jit(lambda batch: objective.choose(model, params, batch, {}))
    for whole in (many, shared):
        chosen = choose(whole)
        assert chosen.negative_BxN.shape == (n_offsets, n_sampled)
        assert not chosen.shared
        assert not (chosen.negative_BxN == item_N[2]).any()
        estimates = np.asarray(total(chosen))
        np.testing.assert_allclose(estimates.mean(), total(many)[0], rtol=2e-3)
        assert estimates.std() > 0.01 * estimates.mean()

    nothing = many.replace(log_weight_BxN=jnp.full_like(many.log_weight_BxN, -jnp.inf))
    assert (choose(nothing).log_weight_BxN == -jnp.inf).all()
    few = softened(0.3, sampled=n)
    assert few.choose(model, params, many, {}) is many
