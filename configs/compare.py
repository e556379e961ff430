r"""Models compared on small data sets, each with settings that were chosen on validation.

python experiments/paper_tables.py --configs=configs/compare.py:data=ml-100k,loss=best \
  --folder=runs/best

The arguments are data, loss and model. The loss of metric-learning models is `best` (all of
best.py, the same for every data set and model), `hinge` with the hardest of 10 uniform negatives,
`softmax` over 50 uniform ones, or `paper`, the settings of HLR's paper on MovieLens-20M. Last.fm-2k
is downloaded by hand, and data.path names `user_artists.dat`. For the data sets with a published
split, the paths of data.split name its matrices:

* steam-200k of Bao et al. (NeurIPS 2022), with their protocol: at each k, users with fewer than k
  test items are left out, and the items of validation are ranked too;
* amazon-electronics of NBPO (SIGIR 2020);
* gowalla and yelp2018 of LightGCN (SIGIR 2020), which have no validation part: a tenth of each
  user's training items is cut for it, and the model is trained once more on all of them.
"""

import pathlib

from hlrcml_jax.config import default_config, parse_arguments
from hlrcml_jax.config_files import call
from hlrcml_jax.models import model_class
from hlrcml_jax.registry import MODELS

LOSSES = ("best", "hinge", "softmax", "paper")
MOVIELENS = {"data.threshold": 4.0, "data.min_per_user": 5}
AT_20 = {"evaluation.cutoffs": (20,), "early_stopping.metric": "ndcg@20"}
GIVEN = {"data.split.kind": "given"}
WITHOUT_VALIDATION = GIVEN | AT_20 | {"data.split.valid": 0.1, "train.refit": True}


def bpr(learning_rate: float, l2_vector: float) -> dict[str, float]:
    return {"optimizer.learning_rate": learning_rate, "model.bpr.l2_vector": l2_vector}


# For a data set: what defines it and its protocol, and what was chosen for a loss, or a loss and a
# model, or a model that is no metric learning. Later entries win.
CHOSEN = {
    "ml-100k": {
        "all": MOVIELENS
        | {"data.name": "ml-100k", "model.item_knn.neighbours": 100, "model.ease.l2": 500.0},
        "bpr": bpr(2e-3, 0.02),
    },
    "ml-latest-small": {
        "all": MOVIELENS | {"data.name": "ml-latest-small", "model.ease.l2": 500.0},
        "paper": {"optimizer.learning_rate": 3e-3},
        "bpr": bpr(5e-3, 0.01),
    },
    "lastfm-2k": {
        "all": {
            "data.format": "delimited",
            "data.separator": "\t",
            "data.columns.user": "userID",
            "data.columns.item": "artistID",
            "data.columns.value": "weight",
            "data.threshold": 6.0,
            "data.min_per_user": 5,
            "model.ease.l2": 100.0,
        },
        "paper": {"optimizer.learning_rate": 3e-3},
        "paper cml": {"optimizer.learning_rate": 1e-3},
        "bpr": bpr(5e-3, 0.03),
    },
    "steam-200k": {
        "all": GIVEN
        | {
            "evaluation.cutoffs": (3, 5, 0),
            "evaluation.min_test_items": "k",
            "evaluation.known": "train",
            "early_stopping.metric": "ndcg@3",
            "model.ease.l2": 50.0,
        },
        "hinge": {"early_stopping.patience": 30},  # it rises again after a pause
        "paper": {"optimizer.learning_rate": 3e-3},
        "paper hlr": {"loss.margin": 0.75},
        "bpr": bpr(5e-3, 0.0025),
    },
    "amazon-electronics": {"all": GIVEN | AT_20, "bpr": bpr(2e-3, 0.03)},
    "gowalla": {"all": WITHOUT_VALIDATION},
    "yelp2018": {"all": WITHOUT_VALIDATION},
}


def get_config(arguments: str = ""):
    given = {"data": "ml-100k", "loss": "hinge", "model": "hlr"}
    given |= parse_arguments("compare.py", arguments, data=CHOSEN, loss=LOSSES, model=MODELS)
    loss, model = given["loss"], given["model"]
    config = _settings(loss, model)
    config.data = default_config().data
    config.model.als.regularization = 10.0
    config.model.item_knn.similarity, config.model.item_knn.neighbours = "tfidf", 1000
    chosen = CHOSEN[given["data"]]
    for name in ("all", loss, f"{loss} {model}", model):
        config.update_from_flattened_dict(chosen.get(name, {}))
    return config


def _settings(loss: str, model: str):
    folder = pathlib.Path(__file__).parent
    config = default_config()
    config.model.name = model
    if not model_class(model).spec.ball:  # no metric learning
        return config
    if loss == "best":
        return call(f"{folder / 'best.py'}:model={model}")
    if loss == "paper":
        config = call(f"{folder / 'paper.py'}:data=ml-20m,model={model}")
        config.evaluation.definitions = "standard"
        config.early_stopping.metric = "ndcg@10"
        config.train.validate_every, config.early_stopping.patience = 5, 4
        return config
    config.model.memory_radius = 0.15 if model == "lrml" else 0.5
    config.optimizer.learning_rate = 2e-3
    config.loss.margin = 1.0
    if loss == "hinge":
        config.negatives.candidates, config.negatives.hardest = 10, 1
    if loss == "softmax":
        config.loss.kind, config.negatives.candidates = "softmax", 50
    return config
