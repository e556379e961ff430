r"""The paper's experiments: its data sets, models and hyper-parameters.

python -m hlrcml_jax.main --config=configs/paper.py:data=ml-20m,model=hlr
python -m hlrcml_jax.main --config=configs/paper.py:data=yelp,model=hlr++ \
  --config.data.path=review.json

Data: ml-20m, echonest, yelp or books; model: cml, lrml, transcf, adacml, als, hlr or hlr++.
MovieLens-20M is downloaded; the others are downloaded by hand, and data.path names the file:
Echonest's `train_triplets.txt` (Million Song Dataset challenge), Yelp's
`yelp_academic_dataset_review.json`, and Amazon's `ratings_Books.csv`, packed or not.

As in the paper, the epoch is the one of lowest validation loss, and metrics have its definitions.
"""

import dataclasses

from hlrcml_jax.config import default_config, parse_arguments

DATA = {
    # data: (format, n-core, least value of a positive)
    "ml-20m": ("ratings.csv", 10, 4.0),
    "echonest": ("train_triplets.txt", 10, 6.0),
    "yelp": ("yelp_academic_dataset_review.json", 5, 4.0),
    "books": ("ratings_Books.csv", 10, 4.0),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """Hyper-parameters of a model on a data set; None where the model has no such thing."""

    learning_rate: float
    margin: float
    max_prefs: int | None = None
    prefs_sampling: str | None = None
    copy_relation: bool | None = None
    clip_memory: bool | None = None


CELLS = {
    ("ml-20m", "cml"): Cell(7.5e-4, 0.5),
    ("ml-20m", "lrml"): Cell(2e-4, 0.2, None, None, False, False),
    ("ml-20m", "transcf"): Cell(5e-4, 0.5),
    ("ml-20m", "adacml"): Cell(2e-4, 0.2, 50, "uniform", False),
    ("ml-20m", "hlr"): Cell(2e-4, 0.2, 50, "uniform", False, False),
    ("ml-20m", "hlr++"): Cell(2e-4, 0.2, 50, "uniform", False, False),
    ("echonest", "cml"): Cell(7.5e-4, 0.5),
    ("echonest", "lrml"): Cell(5e-4, 0.5, None, None, False, False),
    ("echonest", "transcf"): Cell(5e-4, 0.5),
    ("echonest", "adacml"): Cell(5e-4, 0.5, 50, "uniform", False),
    ("echonest", "hlr"): Cell(5e-4, 0.5, 50, "uniform", False, False),
    ("echonest", "hlr++"): Cell(7.5e-4, 0.5, 50, "uniform", False, False),
    ("yelp", "cml"): Cell(7.5e-4, 0.5),
    ("yelp", "lrml"): Cell(7.5e-4, 0.5, None, None, True, True),
    ("yelp", "transcf"): Cell(5e-4, 0.5),
    ("yelp", "adacml"): Cell(5e-4, 0.5, 50, "uniform", False),
    ("yelp", "hlr"): Cell(7.5e-4, 0.75, 5, "unpop", True, True),
    ("yelp", "hlr++"): Cell(5e-4, 0.75, 5, "unpop", True, True),
    ("books", "cml"): Cell(5e-4, 0.5),
    ("books", "lrml"): Cell(5e-4, 0.5, None, None, False, True),
    ("books", "transcf"): Cell(5e-4, 0.5),
    ("books", "adacml"): Cell(2e-4, 0.5, 50, "uniform", False),
    ("books", "hlr"): Cell(5e-4, 0.5, 50, "uniform", False, True),
    ("books", "hlr++"): Cell(7.5e-4, 0.5, 10, "unpop", True, True),
}


CHOICES = {
    "data": tuple(DATA),
    "model": (*dict.fromkeys(model for _, model in CELLS), "als"),
}


def get_config(arguments: str = ""):
    given = {"data": "ml-20m", "model": "hlr"} | parse_arguments("paper.py", arguments, **CHOICES)
    data, model = given["data"], given["model"]
    config = default_config()
    config.data.format, core, config.data.threshold = DATA[data]
    config.data.name = data if data == "ml-20m" else ""
    config.data.min_per_user = config.data.min_per_item = core
    if (data, model) == ("ml-20m", "hlr++"):
        config.data.threshold = 5.0  # as published
    # 80/20, and a tenth of the 80 for validation.
    config.data.split.kind = "random"
    config.data.split.valid, config.data.split.test = 0.08, 0.2
    config.model.name = model
    config.early_stopping.metric = "loss"
    config.early_stopping.patience = config.train.epochs = 100
    config.evaluation.definitions = "paper"
    if model == "als":
        config.model.als.regularization = 20.0 if data == "yelp" else 30.0
        return config
    cell = CELLS[data, model]
    config.optimizer.learning_rate = cell.learning_rate
    config.loss.margin = cell.margin
    config.loss.copy_relation = bool(cell.copy_relation)
    config.model.clip_memory = bool(cell.clip_memory)
    if cell.max_prefs is not None:
        config.model.max_prefs = cell.max_prefs
        config.model.prefs_sampling = cell.prefs_sampling
    return config
