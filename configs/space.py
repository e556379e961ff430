"""What `experiments/sweep.py` tries: a list of values, or a range (low, high) in logarithms.

The argument is a model; everything else stays as the config of the sweep has it.
"""

LOSS = {
    "loss.temperature": (0.1, 1.0),
    "negatives.weights": ["uniform", "popularity"],
    "optimizer.learning_rate": (5e-4, 5e-3),
}
MEMORY = {"model.memory_radius": (0.05, 1.0), "model.key_scale": (1.0, 100.0)}
ATTENTION = {"model.sharpness": (1.0, 16.0)}


def get_space(model: str = "hlr"):
    memory = MEMORY if model in ("hlr", "hlr++", "hlr-r", "lrml") else {}
    return LOSS | memory | (ATTENTION if model in ("hlr-r", "adacml") else {})
