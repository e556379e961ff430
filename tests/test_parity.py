"""Agreement with the paper's own program, case by case, to 1e-5.

Every `.npz` case of a model that we have is read from the folder that HLRCML_FIXTURES names, by
default `tests/fixtures`. Besides the product's code, a textbook form of the models stands here as
a second oracle: it builds every relation as a vector, which the product never does.
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hlrcml_jax.losses import Batch, TripletLoss
from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.hlr import HLR, HLRPlusPlus
from hlrcml_jax.optimizer import keep_rows_in_balls, row_radii

FOLDER = pathlib.Path(
    os.environ.get("HLRCML_FIXTURES") or pathlib.Path(__file__).parent / "fixtures"
)
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
MODELS = {"cml": CML, "hlre": HLR, "jpte": HLRPlusPlus}
CASES = [name for name, flags in MANIFEST.items() if flags["model"] in MODELS]

NAMES = {
    "user_embedding_matrix": ("users",),
    "item_embedding_matrix": ("items",),
    "key_matrix": ("model", "memory", "keys"),
    "memory": ("model", "memory", "values"),
}


def check(actual, expected, what):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg=what)


class Case:
    """One fixture in the product's terms."""

    def __init__(self, name):
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
            self.arrays = dict(arrays)
        self.flags = MANIFEST[name]
        self.model_class = MODELS[self.flags["model"]]
        if self.model_class is CML:
            self.model = CML()
        else:
            self.model = self.model_class(
                self.flags["dim"], self.flags["num_memories"], self.flags["beta"]
            )
        self.params = self.tree("param0")
        self.bound = self.model.bind({"params": self.params["model"]})
        prefs_BxS, mask_BxS = self.preferences("pref_items", "n_prefs", self.arrays["users"])
        self.batch = Batch(
            user_B=jnp.asarray(self.arrays["users"]),
            positive_B=jnp.asarray(self.arrays["pos_items"]),
            negative_BxN=jnp.asarray(self.arrays["neg_items"])[:, None],
            prefs_BxS=prefs_BxS,
            mask_BxS=mask_BxS,
            weight_B=jnp.ones(len(prefs_BxS)),
        )

    def preferences(self, items, counts, users):
        if items not in self.arrays:
            return jnp.zeros((len(users), 0), int), jnp.zeros((len(users), 0), bool)
        prefs_BxS = self.arrays[items]
        mask_BxS = np.arange(prefs_BxS.shape[1])[None] < self.arrays[counts][:, None]
        # Junk behind the mask: what is masked must not matter.
        return jnp.asarray(np.where(mask_BxS, prefs_BxS, 3)), jnp.asarray(mask_BxS)

    def tree(self, prefix):
        tree = {"model": {}}
        for name, path in NAMES.items():
            if f"{prefix}/{name}" in self.arrays:
                node = tree
                for key in path[:-1]:
                    node = node.setdefault(key, {})
                node[path[-1]] = jnp.asarray(self.arrays[f"{prefix}/{name}"])
        return tree

    def check_tree(self, actual, prefix):
        expected = jax.tree.leaves_with_path(self.tree(prefix))
        actual = dict(jax.tree.leaves_with_path(actual))
        assert expected
        for path, value in expected:
            check(actual[path], value, f"{prefix}{jax.tree_util.keystr(path)}")

    def rows(self, target_B):
        items_IxD = self.params["items"]
        user_BxD = self.params["users"][self.batch.user_B]
        return user_BxD, items_IxD[target_B], items_IxD[self.batch.prefs_BxS], self.batch.mask_BxS

    @property
    def loss(self):
        return TripletLoss(self.flags["margin"], copy_relation=self.flags["copy"])


@pytest.fixture(params=CASES)
def case(request):
    return Case(request.param)


# The textbook form: vectors everywhere, one example at a time, masked slots cut off.


def textbook_attention(relations_SxD, x_D, beta):
    if len(relations_SxD) == 0:
        return jnp.zeros_like(x_D)
    mass_S = jnp.exp(relations_SxD @ x_D)
    return (mass_S / jnp.sum(mass_S) ** beta) @ relations_SxD


def textbook_parts(case, user_D, target_D, prefs_SxD):
    """(R, S) of one user and target."""
    if case.model_class is CML:
        return jnp.zeros_like(user_D), jnp.zeros_like(user_D)
    memory, beta = case.params["model"]["memory"], case.flags["beta"]

    def relations(a_D, others_SxD):
        return jax.nn.softmax((a_D[None] * others_SxD) @ memory["keys"]) @ memory["values"]

    if case.model_class is HLR:
        slots_SxD = jnp.concatenate([user_D[None], prefs_SxD])
        return textbook_attention(relations(target_D, slots_SxD), user_D, beta), 0.0 * user_D
    slots_SxD = jnp.concatenate([target_D[None], prefs_SxD])
    return (
        textbook_attention(relations(target_D, prefs_SxD), user_D, beta),
        textbook_attention(relations(user_D, slots_SxD), target_D, beta),
    )


def textbook_relations(case, target_B):
    parts = []
    user_BxD, target_BxD, prefs_BxSxD, mask_BxS = case.rows(target_B)
    for user_D, target_D, prefs_SxD, mask_S in zip(
        user_BxD, target_BxD, prefs_BxSxD, mask_BxS, strict=True
    ):
        parts.append(textbook_parts(case, user_D, target_D, prefs_SxD[np.asarray(mask_S)]))
    return [jnp.stack(part) for part in zip(*parts, strict=True)]


def test_fixtures_cover_the_models():
    assert {MANIFEST[name]["model"] for name in CASES} == set(MODELS)


@pytest.mark.parametrize("side", ["pos", "neg"])
def test_relations(case, side):
    target_B = case.batch.positive_B if side == "pos" or case.flags["copy"] else None
    target_B = case.batch.negative_BxN[:, 0] if target_B is None else target_B
    by_user_BxD, by_item_BxD = textbook_relations(case, target_B)
    user_BxD, *rest = case.rows(target_B)
    cheap_BxD = case.bound.translate(user_BxD, case.bound.relation(user_BxD, *rest)) - user_BxD
    check(cheap_BxD, by_user_BxD + by_item_BxD, "cheap form against the textbook form")
    for key, part in (("relations", by_user_BxD), ("preferences", by_item_BxD)):
        expected = case.arrays.get(f"out/{side}_{key}")
        if expected is not None:
            check(part, expected, f"out/{side}_{key}")


def test_distances(case):
    check(case.bound(*case.rows(case.batch.positive_B)), case.arrays["out/pos_distances"], "pos")
    if not case.flags["copy"]:
        negative = case.bound(*case.rows(case.batch.negative_BxN[:, 0]))
        check(negative, case.arrays["out/neg_distances"], "neg")


def test_loss_and_gradients(case):
    loss, gradients = jax.value_and_grad(case.loss, argnums=1)(case.model, case.params, case.batch)
    check(loss, case.arrays["out/loss"], "loss")
    case.check_tree(gradients, "grad")


def scale_by_paper_adam(b1=0.9, b2=0.999, epsilon=1e-8):
    """Adam with epsilon beside the uncorrected sqrt(v), as in TensorFlow 1."""

    def update(gradients, state, params=None):
        step, mean, square = state
        step = step + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mean, gradients)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, square, gradients)
        scale = np.sqrt(1 - b2**step) / (1 - b1**step)
        updates = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + epsilon), mean, square)
        return updates, (step, mean, square)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return 0, zeros, zeros

    return optax.GradientTransformation(init, update)


def test_weights_after_steps(case):
    optimizer = optax.chain(
        scale_by_paper_adam(),
        optax.scale_by_learning_rate(case.flags["learning_rate"]),
        keep_rows_in_balls(row_radii(case.flags["clip_norm"], case.flags.get("clip_ram", False))),
    )
    params, state = case.params, optimizer.init(case.params)
    for step in (1, 2, 3):
        gradients = jax.grad(case.loss, argnums=1)(case.model, params, case.batch)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        if step != 2:
            case.check_tree(params, f"param{step}")


def test_scores(case):
    users = case.arrays["score_users"]
    prefs_BxS, mask_BxS = case.preferences("score_pref_items", "score_n_prefs", users)
    user_BxD, item_IxD = case.params["users"][users], case.params["items"]
    expected_BxI = case.arrays["out/scores"]

    items = case.bound.block_items(item_IxD, item_IxD)
    block = case.bound.block_users(user_BxD, item_IxD)
    block_BxI = jax.vmap(lambda *user: case.bound.block_distances(items, *user))(
        block, prefs_BxS, mask_BxS
    )
    check(-block_BxI, expected_BxI, "block form")

    for target in (0, 17, len(item_IxD) - 1):
        target_BxD = jnp.broadcast_to(item_IxD[target], user_BxD.shape)
        direct_B = case.bound(user_BxD, target_BxD, item_IxD[prefs_BxS], mask_BxS)
        check(-direct_B, expected_BxI[:, target], "one target at a time")
