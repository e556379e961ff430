"""The one schema: every key of a config with its default, its meaning and what it may be.

`python -m hlrcml_jax.schema` writes it as a table, `configs/README.md`.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

from hlrcml_jax.data import downloads as catalog
from hlrcml_jax.data import readers, splits
from hlrcml_jax.devices import TABLES
from hlrcml_jax.errors import UserError
from hlrcml_jax.models import MODELS, USERS
from hlrcml_jax.ranking.metrics import DEFINITIONS, METRICS
from hlrcml_jax.ranking.scorer import STORAGE
from hlrcml_jax.training.losses import LOSSES
from hlrcml_jax.training.optimizer import ROWS, SCHEDULES
from hlrcml_jax.training.sampling import CANDIDATE_WEIGHTS, PREFERENCE_WEIGHTS


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the schema.

    Attributes:
      default: the default value; its type is the key's type.
      meaning: what it does, in which unit, and what it may be.
      allowed: whether a value is allowed.
      kind: type, given where the default is None, which is then allowed too.
      choices: the allowed values, where they can be listed.
      may_change: whether a run may go on in its workdir after this key has changed.
    """

    default: Any
    meaning: str
    allowed: Callable[[Any], bool] = lambda value: True
    kind: type | None = None
    choices: Collection[str] = ()
    may_change: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises a UserError that names the key, if it cannot have this value."""
        if value is None and self.default is None:
            return
        expected = self.kind or type(self.default)
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            raise UserError(
                f"config key {name} is {value!r}, a {type(value).__name__}; it takes a "
                f"{expected.__name__} ({self.meaning})."
            )
        if (
            (self.choices and value not in self.choices)
            or (expected is float and not math.isfinite(value))
            or not self.allowed(value)
        ):
            raise UserError(f"config key {name} cannot be {value!r}: {self.meaning}.")


def _choice(default: str, meaning: str, choices, **options) -> Key:
    listed = ", ".join(choice or "''" for choice in choices)
    return Key(default, f"{meaning}: {listed}", choices=choices, **options)


def _path(meaning: str) -> Key:
    # The same data may lie elsewhere: a run knows its data by content.
    return Key("", meaning, may_change=True)


def _positive(value) -> bool:
    return value > 0


def _at_least(least):
    return lambda value: value >= least


def _share(value) -> bool:
    return 0 <= value < 1


def _is_factor(value) -> bool:
    return 0 < value <= 1


def _is_stopping_metric(value: str) -> bool:
    name, _, cutoff = value.partition("@")
    return value == "loss" or (name in METRICS and cutoff.isdigit() and int(cutoff) > 0)


SCHEMA: dict[str, Any] = {
    "seed": Key(
        2021, "seed of initial weights and of all draws in training; at least 0", _at_least(0)
    ),
    "data": {
        "name": _choice("", "public data set; '' for your own file", ("", *catalog.CATALOG)),
        "path": _path("your file; with data.name, a folder that already has its files"),
        "format": _choice("auto", "auto goes by the file name", ("auto", *readers.FORMATS)),
        "separator": Key("", "between fields; '' is a tab for .tsv, else a comma"),
        "header": Key(True, "whether the first line holds column names"),
        "columns": {
            "user": Key("", "column name or 0-based place; '' looks for the usual names"),
            "item": Key("", "column name or 0-based place; '' looks for the usual names"),
            "value": Key("", "rating or count: name or place; '' looks for the usual names"),
            "time": Key("", "seconds or ISO date: name or place; '' looks for the usual names"),
        },
        "threshold": Key(None, "least value of a positive; None takes every row", kind=float),
        "min_per_user": Key(0, "interactions that a user must keep (n-core)", _at_least(0)),
        "min_per_item": Key(0, "interactions that an item must keep (n-core)", _at_least(0)),
        "titles": {
            "path": _path("delimited file with the items' titles, if any"),
            "separator": Key("", "between its fields; '' is a tab for .tsv, else a comma"),
            "header": Key(True, "whether its first line holds column names"),
            "item": Key("", "column of item ids, likewise; '' also finds data.columns.item"),
            "value": Key("title", "column of titles: name or 0-based place"),
            "categories": Key("", "column of categories, if any: name or 0-based place"),
            "category_separator": Key("|", "between categories", lambda value: value != ""),
        },
        "split": {
            "kind": _choice("user", "how parts are chosen (see data/splits.py)", splits.KINDS),
            "valid": Key(0.2, "share of all for validation, in [0, 1)", _share),
            "test": Key(0.2, "share of all for test, in [0, 1)", _share),
            "history": Key(0.8, "known share of a held-out user's items, in [0, 1)", _share),
            "keep": Key(
                1.0, "share of training that is kept, to study density; in (0, 1]", _is_factor
            ),
            "seed": Key(
                2021, "seed of the random kinds and of the cohorts; at least 0", _at_least(0)
            ),
            "train_path": _path("file of the training part, kind 'given'"),
            "valid_path": _path("file of the validation part, kind 'given'"),
            "test_path": _path("file of the test part, kind 'given'"),
        },
        "cache_dir": _path("of downloads, data and compiled programs; '' is ~/.cache/hlrcml_jax"),
    },
    "model": {
        "name": _choice("hlr", "which model", MODELS),
        "users": _choice(
            "vectors", "what users are: vectors of their own, or made of their items", USERS
        ),
        "dim": Key(100, "D, length of the user and item vectors; at least 1", _at_least(1)),
        "memory_slots": Key(20, "M, slots of the relation memory; at least 1", _at_least(1)),
        "key_scale": Key(1.0, "initial keys: N(0, 1/D) times this; at least 0", _at_least(0)),
        "value_scale": Key(1.0, "initial values: N(0, 1/D) times this; at least 0", _at_least(0)),
        "max_prefs": Key(50, "S, most preferences that a relation attends to; >= 1", _at_least(1)),
        "prefs_sampling": _choice("uniform", "how preferences are drawn", PREFERENCE_WEIGHTS),
        "beta": Key(1.0, "power of the attention's denominator; above 0", _positive),
        "sharpness": Key(
            1.0, "of adacml's and hlr-r's attention to what is like the target", _at_least(0)
        ),
        "clip_norm": Key(1.0, "radius of the ball of user and item rows; above 0", _positive),
        "clip_memory": Key(False, "bound the rows of the memory's keys and values by 1 too"),
        "memory_radius": Key(None, "bound of the value rows; None: free", _positive, kind=float),
        "transcf": {
            "weight_neighbours": Key(0.1, "weight of its neighbourhood regulariser", _at_least(0)),
            "weight_distance": Key(0.1, "weight of its distance regulariser", _at_least(0)),
        },
        "bpr": {
            "l2_vector": Key(0.0025, "weight decay of user and positive vectors", _at_least(0)),
            "l2_negative": Key(0.00025, "weight decay of the negative's vector", _at_least(0)),
            "l2_bias": Key(0.001, "weight decay of biases", _at_least(0)),
        },
        "als": {
            "regularization": Key(30.0, "of users and items", _at_least(0)),
            "iterations": Key(20, "alternations; at least 1", _at_least(1)),
        },
        "item_knn": {
            "similarity": _choice("cosine", "of two items", ("cosine", "tfidf", "bm25")),
            "neighbours": Key(50, "of each item, itself among them; at least 1", _at_least(1)),
        },
        "ease": {
            "l2": Key(500.0, "regularisation, in interactions; above 0", _positive),
        },
    },
    "pretrained": {
        "users": Key("", "user vectors: a workdir, .npz or .npy (see pretrained.py)"),
        "items": Key("", "item vectors, likewise"),
        "freeze": _choice("", "tables that are not trained", ("", "users", "items", "both")),
    },
    "loss": {
        "kind": _choice("hinge", "of a positive and its negatives", LOSSES),
        "margin": Key(0.2, "margin of the hinge, in squared distance; above 0", _positive),
        "temperature": Key(0.3, "of the softmax, in squared distance; above 0", _positive),
        "copy_relation": Key(False, "the negative uses the positive's relation"),
    },
    "negatives": {
        "candidates": Key(1, "N, negatives drawn for each positive; at least 1", _at_least(1)),
        "hardest": Key(0, "how many of them count, the hardest ones; 0: all", _at_least(0)),
        "weights": _choice("uniform", "how they are drawn", CANDIDATE_WEIGHTS),
        "shared": Key(False, "whether the examples of a batch share them"),
        "correction": Key(
            False, "softmax: weigh them so that they stand for the catalogue (log q correction)"
        ),
    },
    "optimizer": {
        "learning_rate": Key(2e-4, "learning rate of Adam; above 0", _positive),
        "rows": _choice("dense", "tables' rows updated in a step: all, or those touched", ROWS),
        "schedule": _choice("constant", "of the learning rate", SCHEDULES),
        "decay": Key(0.98, "factor of an epoch, schedule 'exponential'; in (0, 1]", _is_factor),
        "cosine_epochs": Key(100, "epochs down to 0, schedule 'cosine'; at least 1", _at_least(1)),
        "warmup_epochs": Key(0, "epochs of linear growth from 0, before it", _at_least(0)),
        "clip_gradient": Key(
            None,
            "bound of the global norm of a batch's gradient; None: free",
            _positive,
            kind=float,
        ),
    },
    "parallel": {
        "tables": _choice(
            "replicated",
            "tables and interactions: on every device, or divided between all",
            TABLES,
            may_change=True,
        ),
    },
    "train": {
        "epochs": Key(100, "most epochs; at least 1", _at_least(1), may_change=True),
        "batch_size": Key(1000, "positives a step, over all devices; at least 1", _at_least(1)),
        "validate_every": Key(1, "epochs between validations and checkpoints", _at_least(1)),
    },
    "early_stopping": {
        "metric": Key(
            "ndcg@10", "chosen on validation: 'loss', or a metric@k", _is_stopping_metric
        ),
        "patience": Key(
            10, "validations without a better value before it stops", _at_least(1), may_change=True
        ),
    },
    "evaluation": {
        "cutoffs": Key(
            (1, 5, 10, 20),
            "the k of every metric; 0 is the whole ranking (metric@all)",
            lambda value: (
                max(value, default=0) > 0 and all(type(k) is int and k >= 0 for k in value)
            ),
            may_change=True,
        ),
        "definitions": _choice(
            "standard", "trec_eval's metrics, or the paper's own", DEFINITIONS, may_change=True
        ),
        "min_test_items": Key(
            "1",
            "users with fewer test items are left out; 'k': at each k those with fewer than k",
            lambda value: value == "k" or (value.isdigit() and int(value) > 0),
            may_change=True,
        ),
        "known": _choice(
            "train+valid", "what test does not rank", ("train+valid", "train"), may_change=True
        ),
        "n_cohorts": Key(5, "groups of users behind ± ; at least 1", _at_least(1), may_change=True),
        "cohort_size": Key(10_000, "most users in a group", _at_least(1), may_change=True),
    },
    "scoring": {
        "memory_mb": Key(
            256, "working memory of full-catalogue scoring, MiB", _at_least(1), may_change=True
        ),
        "storage": _choice(
            "float32", "type in which relations of item pairs wait", STORAGE, may_change=True
        ),
        "batch_size": Key(
            0, "most users at a time; 0: what memory_mb allows", _at_least(0), may_change=True
        ),
    },
    "analyse": {
        "interactions": Key(
            20_000,
            "most test interactions whose relations are compared",
            _at_least(2),
            may_change=True,
        ),
    },
    "recommend": {
        "k": Key(10, "items for each user; at least 1", _at_least(1), may_change=True),
        "users": Key("", "comma-separated user ids, '' for all", may_change=True),
        "only_items": Key("", "comma-separated ids to choose from, '' for all", may_change=True),
        "reasons": Key(3, "of each item (--mode=explain); 0: all", _at_least(0), may_change=True),
        "format": _choice(
            "parquet", "format of the file", ("parquet", "csv", "jsonl"), may_change=True
        ),
    },
}


def all_keys(section: dict[str, Any] = SCHEMA, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """(dotted name, key) of the whole schema, in its order."""
    for name, entry in section.items():
        if isinstance(entry, dict):
            yield from all_keys(entry, f"{prefix}{name}.")
        else:
            yield prefix + name, entry


def unknown_key(name: str) -> UserError:
    """The mistake of a key, or the last part of one, that the schema does not have."""
    known = {full: full for full, _ in all_keys()}
    known |= {full.rpartition(".")[2]: full for full in known}
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {known[close[0]]}?" if close else "configs/README.md has all keys."
    return UserError(f"config key {name} does not exist; {hint}")


def render() -> str:
    """The text of `configs/README.md`: a table of all keys, their defaults and meanings."""
    lines = [
        "# Keys of a config",
        "",
        "Set in a config file, or on the command line as `--config.key=value`. Those with a dot in",
        "the last column may change when a run goes on in its workdir. This table is written by",
        "`python -m hlrcml_jax.schema > configs/README.md`.",
        "",
        "| key | default | meaning | |",
        "|---|---|---|---|",
    ]
    for name, key in all_keys():
        meaning = key.meaning.replace("|", "\\|")
        default = f"`{key.default!r}`".replace("'", '"').replace("|", "\\|")
        lines.append(f"| `{name}` | {default} | {meaning} | {'·' if key.may_change else ''} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(render(), end="")
