"""The recipe for your own data: residual HLR on the sphere, trained without its relation first.

python -m hlrcml_jax.main --config=configs/best.py --config.data.path=own.csv

Nothing in it depends on the data: cosines and item biases make one temperature suit all, and how
much the relation counts is chosen on validation while training. Another model is chosen by
`best.py:model=cml`; experiments/README.md has its results and the contribution of each part.
"""

from hlrcml_jax.config import default_config, parse_arguments
from hlrcml_jax.models import can_be_on_sphere, model_class
from hlrcml_jax.registry import MODELS


def get_config(arguments: str = ""):
    config = default_config()
    config.model.name = parse_arguments("best.py", arguments, model=MODELS).get("model", "hlr-r")
    if can_be_on_sphere(model_class(config.model.name).spec):
        config.model.space = "sphere"
        config.model.gates = (0.0, 0.5, 1.0)
        config.negatives.sampled = 8
    config.model.dim = 64
    config.model.max_prefs = 20
    config.model.sharpness = 8.0
    config.model.memory_slots = 5
    config.model.memory_radius = 0.3
    config.model.key_scale = 30.0
    config.loss.kind = "softmax"
    config.loss.temperature = 0.0
    config.negatives.candidates = 200
    config.negatives.shared = True
    config.negatives.weights = "popularity"
    config.negatives.correction = True
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "exponential"
    config.optimizer.decay = 0.97
    config.scoring.max_prefs = 50
    config.train.batch_size = 500
    config.train.epochs = 200
    config.train.validate_every = 2
    config.evaluation.validation_users = 2000
    config.evaluation.validation_candidates = 500
    config.early_stopping.patience = 3
    config.early_stopping.min_improvement = 0.005
    return config
