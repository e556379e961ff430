"""Models on Steam-200k, by the protocol of a published comparison (Bao et al., NeurIPS 2022).

python -m hlrcml_jax.main --config=configs/steam.py:hlr \\
  --config.data.split.train_path=train.npz --config.data.split.valid_path=valid.npz \\
  --config.data.split.test_path=test.npz

The argument is MODEL, or MODEL,hinge for the hinge with the hardest of 10 negatives, which is that
comparison's strongest loss. At each k, users with fewer than k test items are left out; MAP and MRR
are those of the whole ranking; the items of validation are ranked too.
"""

from hlrcml_jax.config import default_config


def get_config(choice: str = "hlr"):
    model, _, loss = choice.partition(",")
    config = default_config()
    config.data.split.kind = "given"
    config.evaluation.cutoffs = (3, 5, 0)
    config.evaluation.min_test_items = "k"
    config.evaluation.known = "train"
    config.early_stopping.metric = "ndcg@3"
    config.model.name = model
    config.model.max_prefs = 15
    config.optimizer.learning_rate = 2e-3
    config.loss.kind = loss or "softmax"
    config.loss.margin = 1.0
    config.negatives.candidates = 50
    if loss == "hinge":
        config.negatives.candidates = 10
        config.negatives.select = "hardest"
    return config
