"""Models on Steam-200k, by the protocol of a published comparison (Bao et al., NeurIPS 2022).

python -m hlrcml_jax.main --config=configs/steam.py:hlr \\
  --config.data.split.train_path=train.npz --config.data.split.valid_path=valid.npz \\
  --config.data.split.test_path=test.npz

The argument is MODEL, with the settings of `best.py`, or LOSS,MODEL: `softmax` over 50 uniform
candidates, `hinge` with the hardest of 10, which is that comparison's strongest loss, or `paper`
for the settings of HLR's paper on MovieLens-20M. At each k, users with fewer than k test items are
left out; MAP and MRR are those of the whole ranking; the items of validation are ranked too.
"""

import pathlib

from hlrcml_jax.config import default_config, load
from hlrcml_jax.errors import UserError

LOSSES = ("best", "softmax", "hinge", "paper")
HERE = pathlib.Path(__file__).parent


def get_config(choice: str = "hlr"):
    loss, _, model = choice.rpartition(",")
    loss = loss or "best"
    if loss not in LOSSES:
        raise UserError(f"configs/steam.py:{choice}: LOSS,MODEL with LOSS of {', '.join(LOSSES)}.")
    if loss == "best":
        config = load(HERE / "best.py").get_config(model)
    elif loss == "paper":
        config = load(HERE / "paper.py").get_config(f"ml-20m,{model}")
        config.data = default_config().data
        config.evaluation.definitions = "standard"
        config.train.validate_every = 5
        config.early_stopping.patience = 4
    else:
        config = default_config()
        config.model.name = model
        config.optimizer.learning_rate = 2e-3
        config.loss.kind = loss
        config.loss.margin = 1.0
        config.negatives.candidates = 10 if loss == "hinge" else 50
        config.negatives.hardest = 1 if loss == "hinge" else 0
    config.data.split.kind = "given"
    config.evaluation.cutoffs = (3, 5, 0)
    config.evaluation.min_test_items = "k"
    config.evaluation.known = "train"
    config.early_stopping.metric = "ndcg@3"
    return config
