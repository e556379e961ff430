"""Models beside each other on small data sets, each with settings that were chosen on validation.

python experiments/paper_tables.py --configs=configs/compare.py:ml-100k,hinge --folder=runs/hinge

The argument is DATA,LOSS,MODEL. LOSS is that of metric-learning models: `best` of best.py, `hinge`
with the hardest of 10 uniform negatives, `softmax` over 50 uniform ones, or `paper`, the settings
of HLR's paper on MovieLens-20M. Last.fm-2k and Steam-200k are to be had by hand: data.path names
`user_artists.dat`, and data.split's three paths the matrices of a published comparison (Bao et al.,
NeurIPS 2022), whose protocol Steam-200k has: at each k, users with fewer than k test items are left
out, and the items of validation are ranked too.
"""

import pathlib

from hlrcml_jax.config import call, default_config
from hlrcml_jax.errors import UserError

DATA = ("ml-100k", "ml-latest-small", "lastfm-2k", "steam-200k")
LOSSES = ("best", "hinge", "softmax", "paper")
# What was chosen on validation; of other data sets and models the defaults hold.
TEMPERATURE = {
    "ml-latest-small": {
        "cml": 1.0, "lrml": 1.0, "adacml": 1.3, "hlr": 1.3, "hlr++": 1.3, "hlr-r": 1.0,
    },
    "lastfm-2k": {
        "cml": 0.7, "lrml": 1.0, "adacml": 1.0, "hlr": 1.0, "hlr++": 1.0, "hlr-r": 1.0,
    },
    "steam-200k": {"cml": 0.3, "lrml": 0.45, "adacml": 0.45, "hlr": 0.3, "hlr-r": 0.45},
}  # fmt: skip
# Of the paper's loss; margins are those of its data sets.
LEARNING_RATE = {"ml-latest-small": 3e-3, "lastfm-2k": 3e-3, "steam-200k": 3e-3}
OWN_RATE = {"lastfm-2k": {"cml": 1e-3}}
MARGIN = {"steam-200k": {"hlr": 0.75}}
NEIGHBOURS = {"ml-latest-small": 1000, "lastfm-2k": 1000}
EASE_L2 = {"ml-100k": 500.0, "ml-latest-small": 500.0, "lastfm-2k": 100.0, "steam-200k": 50.0}
# Learning rate and weight decay of vectors.
BPR = {"ml-100k": (2e-3, 0.02), "ml-latest-small": (5e-3, 0.01), "lastfm-2k": (5e-3, 0.03)}


def get_config(choice: str = "ml-100k,hinge,hlr"):
    data, loss, model = [*choice.split(","), "", "", ""][:3]
    if data not in DATA or loss not in LOSSES or not model or choice.count(",") > 2:
        raise UserError(
            f"configs/compare.py:{choice}: DATA,LOSS,MODEL with DATA of {', '.join(DATA)} and "
            f"LOSS of {', '.join(LOSSES)}."
        )
    config = _settings(loss, model)
    if loss == "best":
        chosen = TEMPERATURE.get(data, {})
        config.loss.temperature = chosen.get(model, config.loss.temperature)
        if data == "steam-200k" and model not in ("cml", "lrml"):
            config.model.max_prefs = 20  # more gave nothing
    if loss == "paper" and data in LEARNING_RATE:
        own = OWN_RATE.get(data, {})
        config.optimizer.learning_rate = own.get(model, LEARNING_RATE[data])
        config.loss.margin = MARGIN.get(data, {}).get(model, config.loss.margin)
    if model == "bpr":
        config.optimizer.learning_rate, config.model.bpr.l2_vector = BPR.get(data, (5e-3, 0.0025))
    config.model.als.regularization = 10.0
    config.model.item_knn.similarity = "tfidf"
    config.model.item_knn.neighbours = NEIGHBOURS.get(data, 100)
    config.model.ease.l2 = EASE_L2[data]
    config.data = _data(data)
    if loss == "best" and data in ("ml-latest-small", "lastfm-2k"):
        config.train.validate_every, config.early_stopping.patience = 4, 2
    if data == "steam-200k":
        config.evaluation.cutoffs = (3, 5, 0)
        config.evaluation.min_test_items = "k"
        config.evaluation.known = "train"
        config.early_stopping.metric = "ndcg@3"
        if loss == "hinge":
            config.early_stopping.patience = 30  # it goes on rising after a pause
    return config


def _settings(loss: str, model: str):
    folder = pathlib.Path(__file__).parent
    config = default_config()
    config.model.name = model
    if model in ("bpr", "als", "item-knn", "ease", "popularity"):
        return config
    if loss == "best":
        return call(f"{folder / 'best.py'}:{model}")
    if loss == "paper":
        config = call(f"{folder / 'paper.py'}:ml-20m,{model}")
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


def _data(data: str):
    options = default_config().data
    if data == "steam-200k":
        options.split.kind = "given"
        return options
    options.name = data if data.startswith("ml") else ""
    options.threshold = 4.0
    options.min_per_user = 5
    if data == "lastfm-2k":
        options.format, options.separator = "delimited", "\t"
        options.columns.user, options.columns.item = "userID", "artistID"
        options.columns.value, options.threshold = "weight", 6.0
    return options
