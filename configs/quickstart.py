"""HLR with residual relations on MovieLens 100K.

python -m hlrcml_jax.main --config=configs/quickstart.py
"""

from hlrcml_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "ml-100k"
    config.data.threshold = 4.0
    config.model.name = "hlr-r"
    config.model.sharpness = 4.0
    config.model.memory_radius = 0.5
    config.loss.margin = 1.0
    config.negatives.candidates = 10
    config.negatives.hardest = 1
    config.optimizer.learning_rate = 2e-3
    return config
