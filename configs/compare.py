"""All models on small data sets, each with settings that were chosen on validation.

python experiments/paper_tables.py --configs=configs/compare.py:ml-100k --folder=runs/ml-100k

The argument is DATA,MODEL. `ml-100k` is split at random and `ml-latest-small` by time, both within
each user. Metric-learning models share their loss, negatives and learning rate.
"""

from hlrcml_jax.config import default_config
from hlrcml_jax.errors import UserError

SPLITS = {"ml-100k": "user", "ml-latest-small": "user_time"}
# Learning rate and weight decay of vectors.
BPR = {"ml-100k": (2e-3, 0.02), "ml-latest-small": (5e-3, 0.0025)}
EASE_L2 = {"ml-100k": 500.0, "ml-latest-small": 200.0}


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
    config.model.memory_radius = 0.15 if model == "lrml" else 0.5
    config.loss.margin = 1.0
    config.negatives.candidates = 10
    config.negatives.hardest = 1
    config.optimizer.learning_rate = 2e-3
    if model == "bpr":
        config.negatives.candidates = 1
        config.optimizer.learning_rate, config.model.bpr.l2_vector = BPR[data]
    config.model.als.regularization = 10.0
    config.model.item_knn.similarity = "tfidf"
    config.model.item_knn.neighbours = 100
    config.model.ease.l2 = EASE_L2[data]
    return config
