"""The recipe of best.py on MovieLens 100K.

python -m hlrcml_jax.main --config=configs/quickstart.py
"""

import pathlib

from hlrcml_jax.config_files import call


def get_config():
    config = call(f"{pathlib.Path(__file__).parent / 'best.py'}")
    config.data.name = "ml-100k"
    config.data.threshold = 4.0
    return config
