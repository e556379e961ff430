r"""The paper's ablations: one hyper-parameter of a cell of `paper.py` is changed.

python -m hlrcml_jax.main --workdir=runs/m5 \
  --config=configs/ablation.py:data=ml-20m,model=hlr,memory_slots=5

The values of each key that were tried are below. With `--config.data.name=ml-100k` the same is done
on a small data set.
"""

import pathlib

from hlrcml_jax.config import parse_arguments
from hlrcml_jax.config_files import load

PAPER = load(pathlib.Path(__file__).with_name("paper.py"))

VARIANTS = {
    "memory_slots": (5, 10, 20, 50, 100),
    "max_prefs": (5, 10, 20, 50, 100),
    "copy_relation": (False, True),
    "clip_memory": (False, True),
    "beta": (0.5, 0.7, 0.9, 1.0),
}


def get_config(arguments: str = ""):
    given = parse_arguments("ablation.py", arguments, **PAPER.CHOICES, **VARIANTS)
    cell = [f"{name}={given.pop(name)}" for name in PAPER.CHOICES if name in given]
    config = PAPER.get_config(",".join(cell))
    for name, value in given.items():
        section = config.loss if name == "copy_relation" else config.model
        section[name] = value
    return config
