"""A checkpoint on the test part, beside popularity."""

import dataclasses

from hlrcml_jax.ranking.evaluation import Evaluation, evaluate
from hlrcml_jax.ranking.metrics import Summary
from hlrcml_jax.registry import BASELINE
from hlrcml_jax.runs import build
from hlrcml_jax.runs.build import Best
from hlrcml_jax.runs.run import Run


@dataclasses.dataclass(frozen=True)
class Tested:
    """A model and popularity, by name.

    Attributes:
      rows: metrics per user.
      summaries: metrics over users; of the model with a paired test against popularity.
    """

    rows: dict[str, Evaluation]
    summaries: dict[str, Summary]


def on_test(best: Best) -> Tested:
    """Evaluates a checkpoint and popularity on the test part of its run."""
    run = best.run
    name = run.config.model.name
    # Without the validation items, the histories are those for predicting validation.
    known = "test" if run.config.evaluation.known == "train+valid" else "valid"
    ready = best.ready if known == "test" else build.params_for(run, best.params, known)
    scorer, protocol = build.make_scorer(run, known), build.protocol_of(run)
    rows = {name: evaluate(scorer, ready, run.dataset, "test", protocol)}
    if name != BASELINE:
        rows[BASELINE] = _popularity(run, known)
    summaries = {
        label: evaluation.summary(rows[BASELINE] if label != BASELINE else None)
        for label, evaluation in rows.items()
    }
    return Tested(rows, summaries)


def _popularity(run: Run, known: str) -> Evaluation:
    popular = run.with_model(BASELINE)
    fitted = build.initial_state(popular).params
    scorer, ready = build.make_scorer(popular, known), build.params_for(popular, fitted, known)
    return evaluate(scorer, ready, run.dataset, "test", build.protocol_of(run))
