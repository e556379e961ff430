"""What has proved best, for data of your own.

python -m hlrcml_jax.main --config=configs/best.py --config.data.path=ratings.csv
python -m hlrcml_jax.main --config=configs/best.py:cml --config.data.path=ratings.csv

The argument is a model: hlr, hlr++, cml, lrml or adacml. Beside the paper's settings
(`paper.py`): users are made of their items, the loss is a softmax over candidates that are drawn by
popularity and weighed so that they stand for the catalogue, and the memory is bounded. What each
of these gives is in experiments/README.md.
"""

from hlrcml_jax.config import default_config


def get_config(model: str = "hlr"):
    config = default_config()
    config.model.name = model
    config.model.users = "items"
    config.model.max_prefs = 50 if model in ("cml", "lrml") else 20
    config.model.memory_radius = 0.3
    config.model.key_scale = 30.0
    config.loss.kind = "softmax"
    config.loss.temperature = 0.3
    config.negatives.candidates = 50
    config.negatives.weights = "popularity"
    config.negatives.correction = True
    if model in ("hlr", "hlr++", "adacml"):  # a candidate costs a relation of its own
        config.negatives.hardest = 8
    config.optimizer.learning_rate = 2e-3
    config.train.epochs = 40
    config.train.validate_every = 2
    config.early_stopping.patience = 3
    return config
