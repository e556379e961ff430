"""The registry: every model by its name in configs."""

import dataclasses

from hlrcml_jax.models.adacml import AdaCML
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.bpr import BPR
from hlrcml_jax.models.closed_form import ALS, EASE, ItemKNN, Popularity
from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.hlr import HLR, HLRPlusPlus
from hlrcml_jax.models.lrml import LRML
from hlrcml_jax.models.residual import ResidualHLR
from hlrcml_jax.models.transcf import TransCF

MODELS: dict[str, type[Model]] = {
    "hlr": HLR,
    "hlr++": HLRPlusPlus,
    "hlr-r": ResidualHLR,
    "cml": CML,
    "lrml": LRML,
    "transcf": TransCF,
    "adacml": AdaCML,
    "bpr": BPR,
    "als": ALS,
    "item-knn": ItemKNN,
    "ease": EASE,
    "popularity": Popularity,
}

USERS = ("vectors", "items")
OF_ITEMS = tuple(name for name, kind in MODELS.items() if kind.spec.users_from_items)
DIVISIBLE = tuple(name for name, kind in MODELS.items() if kind.spec.sharded)


def make_model(options) -> Model:
    """The model that a config's `model` section describes; its name must be in MODELS."""
    kind = MODELS[options.name]
    own = options.get(options.name.replace("-", "_"), {})
    fields = [x.name for x in dataclasses.fields(kind) if x.name not in ("name", "parent")]
    return kind(**{name: own[name] if name in own else options[name] for name in fields})
