"""The registry: every model by its name in configs."""

from collections.abc import Callable

from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.hlr import HLR, HLRPlusPlus
from hlrcml_jax.models.popularity import Popularity

# Each entry makes a model from the `model` section of a config.
MODELS: dict[str, Callable[..., CML]] = {
    "hlr": lambda options: HLR(options.dim, options.memory_slots, options.beta),
    "hlr++": lambda options: HLRPlusPlus(options.dim, options.memory_slots, options.beta),
    "cml": lambda options: CML(),
    "popularity": lambda options: Popularity(),
}


def make_model(options) -> CML:
    """The model that a config's `model` section describes; its name must be in MODELS."""
    return MODELS[options.name](options)
