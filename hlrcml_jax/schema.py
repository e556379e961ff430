"""Every config key, by section, with its default, description and allowed values.

`config.py` makes, validates and converts configs.
"""

import dataclasses
from typing import Any

from hlrcml_jax import registry
from hlrcml_jax.keys import (
    Options,
    at_least,
    factor,
    is_path,
    is_whole,
    key,
    options,
    positive,
    render,
    share,
)

COLUMN = "column name or 0-based index; '' looks for the usual names"


def _path(meaning: str) -> Any:
    # The same data may be moved: a run identifies its data by content.
    return key("", meaning, may_change=True)


def _is_encoding(value: str) -> bool:
    try:
        return "a".encode(value) != b""
    except (LookupError, ValueError):  # unknown, or not of text
        return False


def _is_quote(value: str) -> bool:
    return value in ("", "auto") or (len(value) == 1 and value.isascii() and value.isprintable())


_ENCODING = "encoding of the text, as Python names it; a byte-order mark overrides it"
_QUOTE = "quote character around fields; '' for none, auto is \" where the separator is , or ;"


def _is_stopping_metric(value: str) -> bool:
    name, _, cutoff = value.partition("@")
    return value == "loss" or (name.isidentifier() and is_whole(cutoff) and int(cutoff) > 0)


def _are_cutoffs(value: tuple) -> bool:
    return all(type(k) is int and k >= 0 for k in value) and max(value, default=0) > 0


def _are_gates(value: tuple) -> bool:
    are_numbers = all(type(gate) in (int, float) and gate >= 0 for gate in value)
    return are_numbers and len(value) > 0 and list(value) == sorted(set(value))


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a file."""

    user: str = key("", f"user ids: {COLUMN}")
    item: str = key("", f"item ids: {COLUMN}")
    value: str = key("", f"rating or count: {COLUMN}")
    time: str = key("", f"seconds, or ISO date (UTC without a zone): {COLUMN}")


@dataclasses.dataclass(frozen=True)
class Titles:
    """The file with the items' titles."""

    path: str = _path("delimited file with the items' titles, if any")
    separator: str = key("", "separator of its fields; '' is a tab for .tsv, else a comma")
    header: bool = key(True, "whether its first line holds column names")
    encoding: str = key("utf-8", _ENCODING, _is_encoding)
    quote: str = key("auto", _QUOTE, _is_quote)
    item: str = key("", f"item ids: {COLUMN} and data.columns.item")
    value: str = key("title", "titles: column name or 0-based index")
    categories: str = key("", "categories, if any: column name or 0-based index")
    category_separator: str = key("|", "separator of the categories of an item", bool)


@dataclasses.dataclass(frozen=True)
class Split:
    """How interactions are split into training, validation and test."""

    kind: str = key("user", "how the parts are drawn, see data/splits.py", choices=registry.SPLITS)
    valid: float = key(
        0.2,
        "share of validation in all interactions, or users for kind 'users', or in training for "
        "kind 'given' without a file of it; in [0, 1)",
        share,
    )
    test: float = key(
        0.2, "share of test in all interactions, or users for kind 'users'; in [0, 1)", share
    )
    history: float = key(
        0.8, "share of a held-out user's items that is its history, in [0, 1); kind 'users'", share
    )
    keep: float = key(1.0, "share of the training part that is kept, in (0, 1]", factor)
    seed: int = key(2021, "seed of random splits and of the cohorts; at least 0", at_least(0))
    train_path: str = _path("file of the training part, kind 'given'")
    valid_path: str = _path("file of the validation part, kind 'given'; '' cuts it from training")
    test_path: str = _path("file of the test part, kind 'given'; '' for none")


@dataclasses.dataclass(frozen=True)
class Data:
    """The interactions: source, format and filters."""

    name: str = key("", "public data set; '' for your own file", choices=("", *registry.DATASETS))
    path: str = _path("your own file; with data.name, a folder that already has its files")
    format: str = key(
        "auto", "format of the file; auto goes by its name", choices=("auto", *registry.FORMATS)
    )
    separator: str = key("", "separator of the fields; '' is a tab for .tsv, else a comma")
    header: bool = key(True, "whether the first line holds column names")
    encoding: str = key("utf-8", _ENCODING, _is_encoding)
    quote: str = key("auto", _QUOTE, _is_quote)
    columns: Columns = Columns()
    threshold: float | None = key(None, "least value of a positive; None takes every row")
    weight: str = key(
        "",
        "weight of a positive in training: its 'rows', the sum of their 'value', or '' for 1 each; "
        "see loss.weight_power",
        choices=("", *registry.WEIGHTS),
    )
    min_per_user: int = key(0, "least interactions of a user (n-core); at least 0", at_least(0))
    min_per_item: int = key(0, "least interactions of an item (n-core); at least 0", at_least(0))
    titles: Titles = Titles()
    split: Split = Split()
    cache_dir: str = key(
        "",
        "folder of downloads, data and compiled programs, never taken from a workdir; '' is "
        "~/.cache/hlrcml_jax",
        may_change=True,
        own=True,
    )


@dataclasses.dataclass(frozen=True)
class TransCF:
    """Options of transcf."""

    weight_neighbours: float = key(
        0.1, "weight of the neighbourhood regulariser; at least 0", at_least(0)
    )
    weight_distance: float = key(0.1, "weight of the distance regulariser; at least 0", at_least(0))


@dataclasses.dataclass(frozen=True)
class BPR:
    """Options of bpr."""

    l2_vector: float = key(
        0.0025, "weight decay of user and positive vectors; at least 0", at_least(0)
    )
    l2_negative: float = key(0.00025, "weight decay of negative vectors; at least 0", at_least(0))
    l2_bias: float = key(0.001, "weight decay of biases; at least 0", at_least(0))


@dataclasses.dataclass(frozen=True)
class ALS:
    """Options of als."""

    regularization: float = key(
        30.0, "regularisation of user and item vectors; at least 0", at_least(0)
    )
    iterations: int = key(20, "number of alternations; at least 1", at_least(1))


@dataclasses.dataclass(frozen=True)
class ItemKNN:
    """Options of item-knn."""

    similarity: str = key("cosine", "similarity of two items", choices=("cosine", "tfidf", "bm25"))
    neighbours: int = key(50, "neighbours of an item, itself included; at least 1", at_least(1))


@dataclasses.dataclass(frozen=True)
class EASE:
    """Options of ease."""

    l2: float = key(500.0, "L2 regularisation, in interactions; above 0", positive)


@dataclasses.dataclass(frozen=True)
class Model:
    """The model and its size; each model reads the keys that are its fields."""

    name: str = key("hlr", "the model", choices=registry.MODELS, code=True)
    options: Options = options("name", "options of a model of your own: its other fields")
    users: str = key(
        "vectors",
        "how a user is represented: by its own vector or by its items",
        choices=registry.USER_REPRESENTATIONS,
    )
    space: str = key(
        "ball",
        "where embeddings are: in a ball, compared by distance as in the paper, or on a sphere, "
        "with item biases and a gate, see models/sphere.py",
        choices=registry.SPACES,
    )
    gates: tuple[float, ...] = key(
        (1.0,),
        "on the sphere, factors of the relation in ascending order, at least 0; when validation no "
        "longer improves, training goes on with the next one from the best epoch",
        _are_gates,
    )
    dim: int = key(100, "D, length of the user and item vectors; at least 1", at_least(1))
    memory_slots: int = key(20, "M, slots of the relation memory; at least 1", at_least(1))
    key_scale: float = key(
        1.0, "scale of the initial memory keys, drawn from N(0, 1/D); at least 0", at_least(0)
    )
    value_scale: float = key(
        1.0, "scale of the initial memory values, drawn from N(0, 1/D); at least 0", at_least(0)
    )
    max_prefs: int = key(
        50, "S, most preferences that a relation attends to; at least 1", at_least(1)
    )
    prefs_sampling: str = key(
        "uniform",
        "sampling of preferences; unpop weights inverse to popularity",
        choices=registry.PREFERENCE_WEIGHTS,
    )
    beta: float = key(1.0, "exponent of the attention's denominator; above 0", positive)
    sharpness: float = key(
        1.0,
        "factor of the similarities in the attention of adacml and hlr-r; at least 0",
        at_least(0),
    )
    clip_norm: float = key(1.0, "largest norm of the user and item vectors; above 0", positive)
    clip_memory: bool = key(False, "whether the norms of memory keys and values stay below 1")
    memory_radius: float | None = key(
        None, "largest norm of the memory values, above 0; None: no bound", positive
    )
    transcf: TransCF = TransCF()
    bpr: BPR = BPR()
    als: ALS = ALS()
    item_knn: ItemKNN = ItemKNN()
    ease: EASE = EASE()


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Embeddings initialised from elsewhere."""

    user_vectors: str = key("", "initial user vectors: a workdir, .npz or .npy, see warm_start.py")
    item_vectors: str = key("", "initial item vectors: a workdir, .npz or .npy, see warm_start.py")
    freeze: str = key("", "tables that are not trained", choices=("", "users", "items", "both"))


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of a positive and its negatives."""

    kind: str = key(
        "hinge", "loss of a positive and its negatives", choices=registry.LOSSES, code=True
    )
    options: Options = options("kind", "options of a loss of your own: its keyword-only parameters")
    margin: float = key(0.2, "margin of the hinge, in units of squared distance; above 0", positive)
    temperature: float = key(
        0.3,
        "temperature of the softmax, in units of squared distance, on the sphere of the cosine; "
        "0: 1.7 / ln(number of items) on the sphere, and twice that in a ball; at least 0",
        at_least(0),
    )
    copy_relation: bool = key(False, "whether a negative uses the positive's relation")
    weight_power: float = key(
        0.25,
        "exponent of the weights of data.weight, which are then divided by their mean; in (0, 1]",
        factor,
    )


@dataclasses.dataclass(frozen=True)
class Negatives:
    """How negatives are sampled."""

    candidates: int = key(1, "N, negatives sampled for each positive; at least 1", at_least(1))
    sampled: int = key(
        0,
        "number of negatives that enter the loss, drawn from the candidates by their share in the "
        "softmax without the relation, and weighted by its inverse; 0: all of them",
        at_least(0),
    )
    hardest: int = key(
        0, "number of hardest negatives that enter the loss; 0: all of them", at_least(0)
    )
    weights: str = key(
        "uniform", "sampling weights of the negatives", choices=registry.NEGATIVE_WEIGHTS, code=True
    )
    options: Options = options(
        "weights", "options of weights of your own: their keyword-only parameters"
    )
    shared: bool = key(False, "whether all examples of a batch share their negatives")
    correction: bool = key(False, "logQ correction of the sampled softmax")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam and its learning rate."""

    learning_rate: float = key(2e-4, "learning rate of Adam; above 0", positive)
    rows: str = key(
        "dense",
        "rows of the tables that a step updates: all, or those of the batch",
        choices=("dense", "lazy"),
    )
    schedule: str = key(
        "constant",
        "schedule of the learning rate",
        choices=("constant", "exponential", "cosine"),
    )
    decay: float = key(
        0.98, "factor of the learning rate per epoch, schedule 'exponential'; in (0, 1]", factor
    )
    cosine_epochs: int = key(
        100, "epochs until the learning rate is 0, schedule 'cosine'; at least 1", at_least(1)
    )
    warmup_epochs: int = key(
        0, "epochs of linear warm-up before the schedule; at least 0", at_least(0)
    )
    clip_gradient: float | None = key(
        None, "largest global norm of a batch's gradient, above 0; None: no bound", positive
    )


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How several devices share the work."""

    tables: str = key(
        "replicated",
        "embeddings and interactions: copied to every device, or sharded over all",
        choices=("replicated", "sharded"),
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """The length of training."""

    epochs: int = key(100, "most epochs; at least 1", at_least(1), may_change=True)
    batch_size: int = key(1000, "positives per step, over all devices; at least 1", at_least(1))
    new_weight: float = key(
        20.0,
        "what a new interaction counts in training that continues another run, against 1 of those "
        "that it had; above 0",
        positive,
    )
    continues: str = _path(
        "workdir of a run that this one continues: training starts from its parameters, and the "
        "interactions of data.path come on top of its own; see --mode=update"
    )
    refit: bool = key(
        False,
        "whether to train once more, on training and validation together, with the epochs and "
        "gates that validation chose",
    )
    validate_every: int = key(
        1, "epochs between validations and checkpoints; at least 1", at_least(1)
    )


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """When training stops, and which epoch is the best."""

    metric: str = key(
        "ndcg@10", "metric@k on validation that chooses the epoch, or 'loss'", _is_stopping_metric
    )
    patience: int = key(
        10,
        "validations without improvement before training stops; at least 1",
        at_least(1),
        may_change=True,
    )
    min_improvement: float = key(
        0.0,
        "share of the best value by which another must be better to count as an improvement, "
        "though the best epoch is always kept; in [0, 1)",
        share,
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The protocol of evaluation."""

    cutoffs: tuple[int, ...] = key(
        (1, 5, 10, 20),
        "the k of every metric; 0 is the whole ranking (metric@all)",
        _are_cutoffs,
        may_change=True,
    )
    definitions: str = key(
        "standard",
        "definitions of the metrics: trec_eval's, or the paper's; training resumes with the same",
        choices=registry.DEFINITIONS,
        may_change=True,
    )
    metrics: tuple[str, ...] = key(
        (),
        "dotted paths (package.module:name) of ranking metrics of your own",
        lambda value: all(map(is_path, value)),
        may_change=True,
        code=True,
    )
    min_test_items: str = key(
        "1",
        "least test items of an evaluated user; 'k': at each k, at least k; training resumes with "
        "the same",
        lambda value: value == "k" or (is_whole(value) and int(value) > 0),
        may_change=True,
    )
    known: str = key(
        "train+valid",
        "parts whose items are not ranked on test",
        choices=("train+valid", "train"),
        may_change=True,
    )
    validation_users: int = key(
        0,
        "most users ranked in a validation while training, a fixed sample; 0: all; training "
        "resumes with the same",
        at_least(0),
        may_change=True,
    )
    validation_candidates: int = key(
        0,
        "of more than 20 times as many items, rank only so many per user in a validation while "
        "training, the closest by their vectors; 0: all; training resumes with the same",
        at_least(0),
        may_change=True,
    )
    n_cohorts: int = key(
        5,
        "cohorts of users for sd_over_cohorts; at least 1; training resumes with the same",
        at_least(1),
        may_change=True,
    )
    cohort_size: int = key(
        10_000,
        "most users in a cohort; at least 1; training resumes with the same",
        at_least(1),
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Memory of full-catalogue scoring."""

    memory_mb: int = key(
        256, "working memory of full-catalogue scoring, in MiB", at_least(1), may_change=True
    )
    storage: str = key(
        "float32",
        "dtype of the cached item-pair relations",
        choices=("float32", "bfloat16", "float16"),
        may_change=True,
    )
    max_prefs: int = key(
        0,
        "most preferences that a relation attends to in ranking; 0: model.max_prefs",
        at_least(0),
        may_change=True,
    )
    batch_size: int = key(
        0, "most users scored at a time; 0: as memory_mb allows", at_least(0), may_change=True
    )


@dataclasses.dataclass(frozen=True)
class Analyse:
    """The analysis of relations."""

    interactions: int = key(
        20_000,
        "most test interactions whose relations are compared; at least 2",
        at_least(2),
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class Recommend:
    """What is recommended, and to whom."""

    k: int = key(10, "recommended items per user; at least 1", at_least(1), may_change=True)
    users: str = key("", "comma-separated user ids; '' for all", may_change=True)
    histories: str = _path(
        "file with the interactions of further users, read as data.path was; they get lists, too"
    )
    unknown: str = key(
        "error",
        "action for users who are not in the data and have no known item in histories: 'error', "
        "'skip' them, or give them the most 'popular' items",
        choices=registry.UNKNOWN,
        may_change=True,
    )
    only_items: str = key(
        "", "comma-separated ids of the items to choose from; '' for all", may_change=True
    )
    candidates: int = key(
        0,
        "of a model with attention, rank only so many items per user, the closest by their "
        "vectors; 0: all, which is exact",
        at_least(0),
        may_change=True,
    )
    reasons: int = key(
        3, "reasons per recommended item (--mode=explain); 0: all", at_least(0), may_change=True
    )
    format: str = key(
        "parquet", "format of the file", choices=("parquet", "csv", "jsonl"), may_change=True
    )


@dataclasses.dataclass(frozen=True)
class Export:
    """What is exported."""

    users: bool = key(
        True,
        "whether users.parquet, with ids and embeddings of users, is in the export",
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """All of a run."""

    seed: int = key(2021, "seed of initial weights and of all draws; at least 0", at_least(0))
    data: Data = Data()
    model: Model = Model()
    pretrained: Pretrained = Pretrained()
    loss: Loss = Loss()
    negatives: Negatives = Negatives()
    optimizer: Optimizer = Optimizer()
    parallel: Parallel = Parallel()
    train: Train = Train()
    early_stopping: EarlyStopping = EarlyStopping()
    evaluation: Evaluation = Evaluation()
    scoring: Scoring = Scoring()
    analyse: Analyse = Analyse()
    recommend: Recommend = Recommend()
    export: Export = Export()


if __name__ == "__main__":
    print(render(Config), end="")
