"""The registry: every model by its name in configs."""

from collections.abc import Callable

from hlrcml_jax.models.adacml import AdaCML
from hlrcml_jax.models.bpr import BPR
from hlrcml_jax.models.closed_form import ALS, EASE, ItemKNN, Popularity
from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.hlr import HLR, HLRPlusPlus
from hlrcml_jax.models.lrml import LRML
from hlrcml_jax.models.residual import ResidualHLR
from hlrcml_jax.models.transcf import TransCF

# Each entry makes a model from the `model` section of a config.
MODELS: dict[str, Callable[..., CML]] = {
    "hlr": lambda options: HLR(*_memory(options), options.beta),
    "hlr++": lambda options: HLRPlusPlus(*_memory(options), options.beta),
    "hlr-r": lambda options: ResidualHLR(*_memory(options), options.beta, options.sharpness),
    "cml": lambda options: CML(),
    "lrml": lambda options: LRML(*_memory(options)),
    "transcf": lambda options: TransCF(**options.transcf),
    "adacml": lambda options: AdaCML(options.beta, options.sharpness),
    "bpr": lambda options: BPR(**options.bpr),
    "als": lambda options: ALS(options.dim, **options.als),
    "item-knn": lambda options: ItemKNN(**options.item_knn),
    "ease": lambda options: EASE(**options.ease),
    "popularity": lambda options: Popularity(),
}

USERS = ("vectors", "items")
# Models whose users can be made of their items.
OF_ITEMS = ("hlr", "hlr++", "hlr-r", "cml", "lrml", "adacml")
# Models whose tables can be divided over devices: those that need no table as a whole.
DIVISIBLE = (*OF_ITEMS, "bpr")


def _memory(options) -> tuple[int, int, float, float]:
    return options.dim, options.memory_slots, options.key_scale, options.value_scale


def make_model(options) -> CML:
    """The model that a config's `model` section describes; its name must be in MODELS."""
    return MODELS[options.name](options)
