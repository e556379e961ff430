"""What `experiments/sweep.py` tries: a list of values, or a range (low, high) in logarithms.

space.py:model=hlr               the main keys of a model
space.py:search=best,model=hlr   three values of the key that matters most for this loss
space.py:search=paper,model=hlr  likewise
space.py:search=recipe           what may still help best.py on your own data, with `--each`
space.py:search=rates,model=hlr  eight learning rates
space.py:search=batch,model=hlr  batch sizes with learning rates
space.py:search=parts,model=hlr-r  with `--each`: best.py without each of its ingredients

Everything else stays as in the sweep's config.
"""

from hlrcml_jax.config import parse_arguments
from hlrcml_jax.registry import MODELS

LOSS = {
    "loss.temperature": (0.1, 1.0),
    "negatives.weights": ["uniform", "popularity"],
    "optimizer.learning_rate": (5e-4, 5e-3),
}
MEMORY = {"model.memory_radius": (0.05, 1.0), "model.key_scale": (1.0, 100.0)}
ATTENTION = {"model.sharpness": (1.0, 16.0)}
SEARCHES = {
    "best": {"optimizer.learning_rate": [1e-3, 2e-3, 4e-3]},
    "paper": {"optimizer.learning_rate": [1e-3, 3e-3, 1e-2]},
    "recipe": {
        "optimizer.learning_rate": [1e-3, 4e-3],
        "model.dim": [128],
        "model.sharpness": [4.0, 16.0],
        "model.max_prefs": [50],
        "negatives.candidates": [800],
    },
    "batch": {
        "train.batch_size": [250, 1000, 4000],
        "optimizer.learning_rate": [1e-3, 2e-3, 4e-3, 8e-3],
    },
    "rates": {"optimizer.learning_rate": [5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.6e-3]},
    "parts": {
        "model.name": ["cml", "adacml", "hlr"],
        "model.space": ["ball"],
        "model.users": ["items"],
        "model.gates": [(0.5,), (1.0,), (0.0, 1.0)],
        "model.sharpness": [4.0],
        "model.memory_slots": [20],
        "model.max_prefs": [50],
        "scoring.max_prefs": [20],
        "negatives.weights": ["uniform"],
        "negatives.candidates": [50],
        "negatives.sampled": [4, 16],
        "loss.temperature": [0.1, 0.2, 0.3],
    },
}
# The key of a model that has no such loss.
OWN = {
    "bpr": {"model.bpr.l2_vector": [0.0025, 0.01, 0.03]},
    "als": {"model.als.regularization": [3.0, 10.0, 30.0]},
    "item-knn": {"model.item_knn.neighbours": [100, 300, 1000]},
    "ease": {"model.ease.l2": [100.0, 200.0, 500.0]},
}


def get_space(arguments: str = ""):
    given = parse_arguments("space.py", arguments, search=SEARCHES, model=MODELS)
    model = given.get("model", "hlr")
    if "search" in given:
        return OWN.get(model, SEARCHES[given["search"]])
    memory = MEMORY if model in ("hlr", "hlr++", "hlr-r", "lrml") else {}
    return LOSS | memory | (ATTENTION if model in ("hlr-r", "adacml") else {})
