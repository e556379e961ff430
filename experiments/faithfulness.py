"""Are the reasons of recommendations faithful: does an item fall when they are taken away?

python experiments/faithfulness.py --workdir=runs/quickstart

For the first recommendation of each user, the past items with the largest shares of the attention
are left out of its relation, and the item's new rank is compared with the one after as many others,
drawn at random, are left out. Prints the mean ranks and the p-value of Wilcoxon's signed-rank test.
"""

import functools

import jax
import numpy as np
import scipy.stats
from absl import flags, logging

from hlrcml_jax import config_files, explain
from hlrcml_jax.errors import run_program
from hlrcml_jax.models.past import own_scores
from hlrcml_jax.runs import build
from hlrcml_jax.runs.build import best_checkpoint
from hlrcml_jax.runs.workdir import open_run

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a trained run.", required=True)
_ALLOW_CODE = flags.DEFINE_bool(
    "allow_code", False, "Import the custom code named in the config of a workdir you trust."
)
_LEFT_OUT = flags.DEFINE_integer("left_out", 3, "Past items that are left out.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random ones.")


@functools.partial(jax.jit, static_argnums=0)
def scores(model, params, user_D, items_IxD, prefs_SxD, mask_S):
    """Scores (I,) of all items for a user, with the past items of the mask alone."""
    n = len(items_IxD)
    user_IxD, *past = (x[None].repeat(n, axis=0) for x in (user_D, prefs_SxD, mask_S))
    rows = (user_IxD, items_IxD, *past)
    return model.apply({"params": params}, *rows, method=own_scores)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    config = config_files.from_workdir(_WORKDIR.value, allow_code=_ALLOW_CODE.value)
    run = open_run(config, _WORKDIR.value)
    model, scorer = build.model_of(run), build.make_scorer(run, "test")
    ready = best_checkpoint(run).ready
    params, rng = build.on_host(run, ready), np.random.default_rng(_SEED.value)
    n, known = _LEFT_OUT.value, run.dataset.known("test")
    user_C = np.flatnonzero(np.diff(known.indptr) >= 2 * n)
    item_C = np.concatenate([found.item_CxK[:, 0] for found in scorer.rank(ready, user_C, 1)])
    found = explain.apply_to_pairs(explain.shares, model, params, scorer, user_C, item_C)
    shares, prefs_CxS, mask_CxS = found
    share_CxS = np.where(mask_CxS, shares["share"], -1.0)
    ranks = {"before": [], "reasons": [], "random": []}
    for user, item, prefs_S, mask_S, share_S in zip(
        user_C, item_C, prefs_CxS, mask_CxS, share_CxS, strict=True
    ):
        left_out = {
            "before": [],
            "reasons": np.argsort(-share_S)[:n],
            "random": rng.permutation(np.flatnonzero(mask_S))[:n],
        }
        prefs_SxD, hidden = params["items"][prefs_S], known[[user]].indices
        if "users" in params:
            user_D = params["users"][user]
        else:
            user_D = np.asarray(model.represent(None, prefs_SxD[None], mask_S[None]))[0]
        for name, slots in left_out.items():
            kept_S = mask_S.copy()
            kept_S[slots] = False
            args = (params["model"], user_D, params["items"], prefs_SxD, kept_S)
            score_I = np.array(scores(model, *args))
            score_I[hidden] = -np.inf
            ranks[name].append(1 + int(np.sum(score_I > score_I[item])))
    for name, values in ranks.items():
        print(f"{name}: mean rank {np.mean(values):.2f}")
    difference = np.subtract(ranks["reasons"], ranks["random"])
    p = scipy.stats.wilcoxon(difference, alternative="greater").pvalue
    deeper, less = np.mean(difference > 0), np.mean(difference < 0)
    print(
        f"{len(user_C):,} users: without the reasons {100 * deeper:.0f} % fall deeper than without "
        f"as many others, {100 * less:.0f} % less deep; p = {p:.2g}."
    )


if __name__ == "__main__":
    run_program(main)
