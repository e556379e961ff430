"""What `experiments/sweep.py` tries: a list of values, or a range (low, high) in logarithms.

The argument is a model, whose main keys are searched; or LOSS,MODEL for three values of one key, of
which `compare.py:DATA,LOSS,MODEL` has the best; or `rates,MODEL` for eight learning rates; or
`batch,MODEL` for batch sizes with rates; or, with `--each`, `parts,hlr-r` for what takes each
ingredient of best.py away.
Everything else stays as in the sweep's config.
"""

LOSS = {
    "loss.temperature": (0.1, 1.0),
    "negatives.weights": ["uniform", "popularity"],
    "optimizer.learning_rate": (5e-4, 5e-3),
}
MEMORY = {"model.memory_radius": (0.05, 1.0), "model.key_scale": (1.0, 100.0)}
ATTENTION = {"model.sharpness": (1.0, 16.0)}
THREE = {
    "best": {"loss.temperature": [0.7, 1.0, 1.3]},
    "paper": {"optimizer.learning_rate": [1e-3, 3e-3, 1e-2]},
    "batch": {
        "train.batch_size": [250, 1000, 4000],
        "optimizer.learning_rate": [1e-3, 2e-3, 4e-3, 8e-3],
    },
    "rates": {"optimizer.learning_rate": [5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.6e-3]},
    "parts": {
        "model.name": ["adacml", "hlr"],
        "model.users": ["vectors"],
        "model.sharpness": [1.0],
        "model.memory_radius": [None],
        "model.key_scale": [1.0],
        "negatives.weights": ["uniform"],
        "negatives.correction": [False],
        "negatives.candidates": [16],
        "negatives.hardest": [2],
        "loss.temperature": [0.3],
        "loss.kind": ["hinge"],
    },
    "bpr": {"model.bpr.l2_vector": [0.0025, 0.01, 0.03]},
    "als": {"model.als.regularization": [3.0, 10.0, 30.0]},
    "item-knn": {"model.item_knn.neighbours": [100, 300, 1000]},
    "ease": {"model.ease.l2": [100.0, 200.0, 500.0]},
}


def get_space(choice: str = "hlr"):
    loss, _, model = choice.rpartition(",")
    if loss:
        return THREE.get(model, THREE[loss])
    memory = MEMORY if model in ("hlr", "hlr++", "hlr-r", "lrml") else {}
    return LOSS | memory | (ATTENTION if model in ("hlr-r", "adacml") else {})
