"""Residual HLR with what ranked best on the validation part of Steam-200k.

python -m hlrcml_jax.main --config=configs/best.py --config.data.path=own.csv

A user is represented by its items, and the loss is a sampled softmax with negatives drawn by
popularity and logQ correction. What is left to choose for other data is above all the temperature:
0.45 was best there, and 1 on MovieLens latest-small and Last.fm-2k. Another model is chosen by
`best.py:model=cml`; experiments/README.md has the contribution of each part.
"""

from hlrcml_jax.config import default_config, parse_arguments
from hlrcml_jax.models import model_class
from hlrcml_jax.registry import MODELS

# Each candidate costs them a pass over the preferences.
ATTENTIVE = ("hlr", "hlr++", "hlr-r", "adacml")


def get_config(arguments: str = ""):
    model = parse_arguments("best.py", arguments, model=MODELS).get("model", "hlr-r")
    config = default_config()
    config.model.name = model
    config.model.users = "items" if model_class(model).spec.users_from_items else "vectors"
    config.model.max_prefs = 50
    config.model.sharpness = 4.0
    config.model.memory_radius = 0.3
    config.model.key_scale = 30.0
    config.loss.kind = "softmax"
    config.loss.temperature = 0.6
    config.negatives.candidates = 50
    config.negatives.hardest = 8 if model in ATTENTIVE else 0
    config.negatives.weights = "popularity"
    config.negatives.correction = True
    config.optimizer.learning_rate = 2e-3
    config.train.epochs = 40
    config.train.validate_every = 2
    config.early_stopping.patience = 3
    return config
