"""All models on small data sets, each with settings that were chosen on validation.

python experiments/paper_tables.py --configs=configs/compare.py:ml-100k --folder=runs/ml-100k

The argument is DATA,MODEL. `ml-100k` is split at random and `ml-latest-small` by time, both within
each user. Metric-learning models share their loss, negatives and learning rate.
"""

from hlrcml_jax.config import default_config
from hlrcml_jax.errors import UserError

SPLITS = {"ml-100k": "user", "ml-latest-small": "user_time"}


def get_config(choice: str = "ml-100k,hlr"):
    data, _, model = choice.partition(",")
    if data not in SPLITS:
        raise UserError(
            f"configs/compare.py:{choice}: DATA,MODEL with DATA of {', '.join(SPLITS)}."
        )
    config = default_config()
    config.data.name, config.data.split.kind = data, SPLITS[data]
    config.data.threshold = 4.0
    config.data.min_per_user = 5
    config.model.name = model or "hlr"
    config.model.memory_radius = 0.5
    config.loss.margin = 1.0
    config.negatives.candidates = 10
    config.negatives.select = "hardest"
    config.optimizer.learning_rate = 2e-3
    if model == "bpr":
        config.negatives.candidates = 1
    return config
