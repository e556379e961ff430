"""Agreement with the paper's own program, case by case, to 1e-5.

Every `.npz` case is read from the folder that HLRCML_FIXTURES names, by default `tests/fixtures`.
Besides the product's code, a textbook form of the models stands here as a second oracle: it builds
every relation as a vector, which the product never does, and in numpy, which compiles nothing.
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hlrcml_jax.models.adacml import AdaCML
from hlrcml_jax.models.bpr import BPR
from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.hlr import HLR, HLRPlusPlus
from hlrcml_jax.models.lrml import LRML
from hlrcml_jax.models.past import Examples, TablePast, own_scores
from hlrcml_jax.models.transcf import TransCF
from hlrcml_jax.training.batch import Batch
from hlrcml_jax.training.losses import hinge, logistic
from hlrcml_jax.training.objective import Objective
from hlrcml_jax.training.optimizer import keep_rows_in_balls, row_radii
from hlrcml_jax.training.step import Trainer

FOLDER = pathlib.Path(
    os.environ.get("HLRCML_FIXTURES") or pathlib.Path(__file__).parents[1] / "fixtures"
)
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
CASES = sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem != "metrics")

# The model of a case by the name that the paper's program has for it.
MODELS = {
    "cml": lambda flags: CML(),
    "lrml": lambda flags: LRML(flags["dim"], flags["num_memories"]),
    "transcf": lambda flags: TransCF(),
    "attcml": lambda flags: AdaCML(flags["beta"]),
    "hlre": lambda flags: HLR(flags["dim"], flags["num_memories"], beta=flags["beta"]),
    "jpte": lambda flags: HLRPlusPlus(flags["dim"], flags["num_memories"], beta=flags["beta"]),
    "bpr": lambda flags: BPR(),
}

MEMORY = {"keys": "key_matrix", "values": "memory"}


def check(actual, expected, what):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg=what)


class Case:
    """One fixture in the product's terms."""

    def __init__(self, name):
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
            self.arrays = dict(arrays)
        self.flags = MANIFEST[name]
        self.model = MODELS[self.flags["model"]](self.flags)
        self.params = self.tree("param0")
        self.bound = self.model.bind({"params": self.params["model"]})
        self.constants = self.neighbours() if self.model.spec.constants else {}
        prefs_BxS, mask_BxS = self.preferences("pref_items", "n_prefs", self.arrays["users"])
        self.batch = Batch(
            user_B=jnp.asarray(self.arrays["users"]),
            positive_B=jnp.asarray(self.arrays["pos_items"]),
            negative_BxN=jnp.asarray(self.arrays["neg_items"])[:, None],
            log_weight_BxN=jnp.zeros((len(prefs_BxS), 1)),
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

    def neighbours(self):
        """TransCF's means, taken from the weights before the first step."""
        user_items = self.arrays["user_items"]
        user_E, place_E = np.nonzero(user_items >= 0)
        return self.model.constants(self.params, user_E, user_items[user_E, place_E])

    def tree(self, prefix):
        """Weights (or gradients) in the product's structure: biases are a column of the rows."""

        def table(side):
            rows = self.arrays[f"{prefix}/{side}_embedding_matrix"]
            bias = self.arrays.get(f"{prefix}/{side}_bias")
            return jnp.asarray(rows if bias is None else np.hstack([rows, bias]))

        memory = {
            name: jnp.asarray(self.arrays[f"{prefix}/{key}"])
            for name, key in MEMORY.items()
            if f"{prefix}/{key}" in self.arrays
        }
        model = {"memory": memory} if memory else {}
        return {"users": table("user"), "items": table("item"), "model": model}

    def check_tree(self, actual, prefix):
        expected = jax.tree.leaves_with_path(self.tree(prefix))
        actual = dict(jax.tree.leaves_with_path(actual))
        assert len(expected) == len(actual)
        for path, value in expected:
            check(actual[path], value, f"{prefix}{jax.tree_util.keystr(path)}")

    def rows(self, name, ids):
        row_BxD = self.params[name][ids]
        if name in self.constants:
            row_BxD = jnp.concatenate([row_BxD, self.constants[name][ids]], axis=-1)
        return row_BxD

    def moved(self, user_BxD, target_BxD, prefs_BxSxD, mask_BxS):
        examples = Examples.of(self.bound, user_BxD, prefs_BxSxD, mask_BxS)
        moved_Bx1xD = self.bound.moved(*examples.with_targets(self.bound, target_BxD[:, None]))
        return moved_Bx1xD[:, 0]

    def examples(self, target_B):
        """Rows of the batch's users, of targets and of preferences, and the mask."""
        prefs_BxSxD = self.rows("items", self.batch.prefs_BxS)
        user_BxD, target_BxD = self.rows("users", self.batch.user_B), self.rows("items", target_B)
        return user_BxD, target_BxD, prefs_BxSxD, self.batch.mask_BxS

    @property
    def loss(self):
        pairwise = functools.partial(hinge, margin=self.flags["margin"])
        loss = logistic if self.model.spec.logistic else pairwise
        return Objective(loss, copy_relation=self.flags["copy"])


@pytest.fixture(params=CASES)
def case(request):
    return Case(request.param)


# The textbook form: vectors everywhere, one example at a time, masked slots cut off.


def textbook_attention(relations_SxD, x_D, beta):
    if len(relations_SxD) == 0:
        return np.zeros_like(x_D)
    mass_S = np.exp(relations_SxD @ x_D)
    return (mass_S / np.sum(mass_S) ** beta) @ relations_SxD


def textbook_parts(case, user_D, target_D, prefs_SxD):
    """(R, S) of one user and target; a model that is not hierarchical has R alone."""
    kind, beta, nothing = case.flags["model"], case.flags["beta"], np.zeros(case.flags["dim"])
    if kind in ("cml", "bpr"):
        return nothing, nothing
    if kind == "transcf":
        return user_D[len(nothing) :] * target_D[len(nothing) :], nothing
    if kind == "attcml":
        mass_S = np.exp(prefs_SxD @ target_D)
        return (mass_S / np.sum(mass_S) ** beta) @ prefs_SxD, nothing
    memory = jax.device_get(case.params["model"]["memory"])

    def relations(a_D, others_SxD):
        mass_SxM = np.exp((a_D[None] * others_SxD) @ memory["keys"])
        return mass_SxM / mass_SxM.sum(axis=1, keepdims=True) @ memory["values"]

    if kind == "lrml":
        return relations(user_D, target_D[None])[0], nothing
    if kind == "hlre":
        slots_SxD = np.concatenate([user_D[None], prefs_SxD])
        return textbook_attention(relations(target_D, slots_SxD), user_D, beta), nothing
    slots_SxD = np.concatenate([target_D[None], prefs_SxD])
    return (
        textbook_attention(relations(target_D, prefs_SxD), user_D, beta),
        textbook_attention(relations(user_D, slots_SxD), target_D, beta),
    )


def textbook_relations(case, target_B):
    parts = []
    user_BxD, target_BxD, prefs_BxSxD, mask_BxS = jax.device_get(case.examples(target_B))
    for user_D, target_D, prefs_SxD, mask_S in zip(
        user_BxD, target_BxD, prefs_BxSxD, mask_BxS, strict=True
    ):
        parts.append(textbook_parts(case, user_D, target_D, prefs_SxD[mask_S]))
    return [np.stack(part) for part in zip(*parts, strict=True)]


def test_fixtures_cover_the_models():
    assert {MANIFEST[name]["model"] for name in CASES} == set(MODELS)


@pytest.mark.parametrize("side", ["pos", "neg"])
def test_relations(case, side):
    copied = side == "pos" or case.flags["copy"]
    target_B = case.batch.positive_B if copied else case.batch.negative_BxN[:, 0]
    by_user_BxD, by_item_BxD = textbook_relations(case, target_B)
    examples = case.examples(target_B)
    if case.flags["model"] != "bpr":
        # TransCF's rows have more than the vector.
        user_BxD = examples[0][:, : case.flags["dim"]]
        moved_BxD = case.moved(*examples)
        check(moved_BxD - user_BxD, by_user_BxD + by_item_BxD, "cheap against textbook form")
    keys = {"relations": by_user_BxD, "attentive": by_user_BxD, "preferences": by_item_BxD}
    for key, part in keys.items():
        expected = case.arrays.get(f"out/{side}_{key}")
        if expected is not None:
            check(part, expected, f"out/{side}_{key}")


def test_neighbours_are_the_programs(case):
    """TransCF's own means equal the vectors that the paper's program was fed."""
    if case.model.spec.constants:
        given = {
            ("users", "user"): case.batch.user_B,
            ("items", "pos"): case.batch.positive_B,
            ("items", "neg"): case.batch.negative_BxN[:, 0],
        }
        for (table, side), ids in given.items():
            check(case.constants[table][ids], case.arrays[f"{side}_neighbors"], side)


def test_distances(case):
    # What the program calls BPR's distances are its scores.
    sign = 1.0 if case.flags["model"] == "bpr" else -1.0
    sides = {"pos": case.batch.positive_B, "neg": case.batch.negative_BxN[:, 0]}
    for side, target_B in sides.items():
        if side == "pos" or not case.flags["copy"]:
            expected_B = case.arrays[f"out/{side}_distances"].reshape(-1)
            check(sign * own_scores(case.bound, *case.examples(target_B)), expected_B, side)


def test_loss_and_gradients(case):
    values = case.params, case.batch, case.constants
    loss_and_gradients = jax.value_and_grad(functools.partial(case.loss, case.model))
    loss, gradients = jax.jit(loss_and_gradients)(*values)
    check(loss, case.arrays["out/loss"], "loss")
    case.check_tree(gradients, "grad")

    # And as training computes them, in blocks of a few examples.
    trainer = Trainer(case.model, case.loss, optax.identity(), 32, block_bytes=1500)
    loss, gradients = jax.jit(trainer.gradients)(*values)
    check(loss, case.arrays["out/loss"], "loss of blocks")
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
    clip_norm = case.flags["clip_norm"] if case.model.spec.ball else None
    optimizer = optax.chain(
        scale_by_paper_adam(),
        optax.scale_by_learning_rate(case.flags["learning_rate"]),
        keep_rows_in_balls(row_radii(clip_norm, case.flags.get("clip_ram", False))),
    )
    params, state = case.params, optimizer.init(case.params)
    gradient = jax.jit(jax.grad(functools.partial(case.loss, case.model)))
    for step in (1, 2, 3):
        gradients = gradient(params, case.batch, case.constants)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        if step != 2:
            case.check_tree(params, f"param{step}")


def test_scores(case):
    users = case.arrays["score_users"]
    prefs_BxS, mask_BxS = case.preferences("score_pref_items", "score_n_prefs", users)
    user_BxD, item_IxD = case.rows("users", users), case.rows("items", jnp.arange(60))
    expected_BxI = case.arrays["out/scores"]
    if case.flags["model"] == "lrml":  # the program's LRML ranks by the root of the distance
        expected_BxI = -np.square(expected_BxI)

    past_BxSxD = item_IxD[prefs_BxS]
    users = case.bound.users(user_BxD, past_BxSxD, mask_BxS)
    met = case.bound.meet(users, item_IxD[None])
    past = TablePast(case.bound.relate(item_IxD, item_IxD), mask_BxS, item_IxD, prefs_BxS)
    score_BxI = case.bound.scores(users, met, item_IxD[None], past)
    check(score_BxI, expected_BxI, "targets that all users share")

    for target in (0, 17, len(item_IxD) - 1):
        target_BxD = jnp.broadcast_to(item_IxD[target], user_BxD.shape)
        score_B = own_scores(case.bound, user_BxD, target_BxD, past_BxSxD, mask_BxS)
        check(score_B, expected_BxI[:, target], "a target of one's own")
