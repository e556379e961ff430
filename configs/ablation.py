"""The paper's ablations: one hyper-parameter of a cell of `paper.py` is changed.

python -m hlrcml_jax.main --config=configs/ablation.py:ml-20m,hlr,memory_slots,5 --workdir=runs/m5

The argument is DATA,MODEL,KEY,VALUE; the values that were tried stand below. With
`--config.data.name=ml-100k` the same is done on a small data set.
"""

import pathlib

from hlrcml_jax.config import load
from hlrcml_jax.errors import UserError

VARIANTS = {
    "memory_slots": (5, 10, 20, 50, 100),
    "max_prefs": (5, 10, 20, 50, 100),
    "copy_relation": (False, True),
    "clip_memory": (False, True),
    "beta": (0.5, 0.7, 0.9, 1.0),
}


def get_config(choice: str = "ml-20m,hlr,memory_slots,20"):
    *cell, key, text = choice.split(",")
    values = {str(value): value for value in VARIANTS.get(key, ())}
    if text not in values:
        raise UserError(
            f"configs/ablation.py:{choice}: DATA,MODEL,KEY,VALUE with KEY,VALUE of "
            + "; ".join(f"{key}: {', '.join(map(str, all))}" for key, all in VARIANTS.items())
            + "."
        )
    paper = load(pathlib.Path(__file__).with_name("paper.py"))
    config = paper.get_config(",".join(cell))
    section = config.loss if key == "copy_relation" else config.model
    section[key] = values[text]
    return config
