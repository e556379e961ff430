"""Models on Steam-200k, by the protocol of a published comparison (Bao et al., NeurIPS 2022).

python -m hlrcml_jax.main --config=configs/steam.py:hlr \\
  --config.data.split.train_path=train.npz --config.data.split.valid_path=valid.npz \\
  --config.data.split.test_path=test.npz

The argument is MODEL or LOSS,MODEL. `catalogue`, which is meant without one, makes users of their
items, and the loss a softmax over candidates that are drawn by popularity and weighed so that they
stand for the catalogue; `softmax` has user vectors and 50 uniform candidates; `hinge` the hardest
of 10, which is that comparison's strongest loss; `paper` the settings of HLR's paper on
MovieLens-20M. At each k, users with fewer than k test items are left out; MAP and MRR are those of
the whole ranking; the items of validation are ranked too.
"""

import pathlib

from hlrcml_jax.config import default_config, load
from hlrcml_jax.errors import UserError
from hlrcml_jax.models import OF_ITEMS

LOSSES = ("catalogue", "softmax", "hinge", "paper")
# A candidate costs a relation of its own.
COSTLY = ("hlr", "hlr++", "adacml")


def get_config(choice: str = "hlr"):
    loss, _, model = choice.rpartition(",")
    loss = loss or "catalogue"
    if loss not in LOSSES:
        raise UserError(f"configs/steam.py:{choice}: LOSS,MODEL with LOSS of {', '.join(LOSSES)}.")
    config = default_config()
    if loss == "paper":
        config = load(pathlib.Path(__file__).with_name("paper.py")).get_config(f"ml-20m,{model}")
        config.data = default_config().data
        config.evaluation.definitions = "standard"
        config.train.validate_every = 5
        config.early_stopping.patience = 4
    else:
        config.model.name = model
        config.loss.kind = "hinge" if loss == "hinge" else "softmax"
        config.loss.margin = 1.0
        config.negatives.candidates = 10 if loss == "hinge" else 50
        config.negatives.hardest = 1 if loss == "hinge" else 0
        config.optimizer.learning_rate = 2e-3
    if loss == "catalogue":
        config.model.users = "items" if model in OF_ITEMS else "vectors"
        config.model.max_prefs = 20 if model in COSTLY else 50
        config.model.memory_radius = 0.3
        config.model.key_scale = 30.0
        config.negatives.hardest = 8 if model in COSTLY else 0
        config.negatives.weights = "popularity"
        config.negatives.correction = True
        config.train.epochs = 40
        config.train.validate_every = 2
        config.early_stopping.patience = 3
    config.data.split.kind = "given"
    config.evaluation.cutoffs = (3, 5, 0)
    config.evaluation.min_test_items = "k"
    config.evaluation.known = "train"
    config.early_stopping.metric = "ndcg@3"
    return config
