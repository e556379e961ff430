"""Every key at its default; README.md beside this file says what they are."""

from hlrcml_jax.config import default_config


def get_config():
    return default_config()
