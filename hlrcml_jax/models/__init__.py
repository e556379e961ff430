"""The registry: every model by its name in configs."""

import dataclasses

from hlrcml_jax import config, custom
from hlrcml_jax.errors import UserError
from hlrcml_jax.models.adacml import AdaCML
from hlrcml_jax.models.bpr import BPR
from hlrcml_jax.models.closed_form import ALS, EASE, ItemKNN, Popularity, Solved
from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.hlr import HLR, HLRPlusPlus
from hlrcml_jax.models.lrml import LRML
from hlrcml_jax.models.residual import ResidualHLR
from hlrcml_jax.models.transcf import TransCF

MODELS: dict[str, type[CML]] = {
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


def model_class(name: str) -> type[CML]:
    """The class of a built-in name or of a dotted path, see `custom.py`.

    Raises:
      UserError: when the path names no model.
    """
    if name in MODELS:
        return MODELS[name]
    found = custom.resolve("model.name", name)
    if not (isinstance(found, type) and issubclass(found, CML)):
        raise UserError(
            f"config key model.name: {name} is no model; models are subclasses of "
            f"{CML.__module__}.{CML.__name__}."
        )
    return found


def make_model(options: config.Model) -> CML:
    """The model that a config's `model` section describes.

    Each field of its class has the value of the key of its name: of the model's own section
    (`model.als`), of `model`, or of `model.options`; else its default.
    """
    made = model_class(options.name)
    own = getattr(options, options.name.replace("-", "_"), None)
    values = {}
    for field in dataclasses.fields(made):
        if not field.init or field.name in custom.OF_FLAX:
            continue
        if hasattr(own, field.name):
            values[field.name] = getattr(own, field.name)
        elif field.name in options.options:
            values[field.name] = options.options[field.name]
        elif hasattr(options, field.name):
            values[field.name] = getattr(options, field.name)
    return made(**values)


def can_have_users_of_items(model: type[CML]) -> bool:
    """Whether a model can represent a user by its items."""
    return can_be_sharded(model) and model.in_ball


def can_be_sharded(model: type[CML]) -> bool:
    """Whether a model's tables can be sharded: it needs no table as a whole."""
    return not issubclass(model, Solved) and not model.adds_constants


def check(settings: config.Config) -> None:
    """Checks what a model of the user's own is asked for, as `validate` does for built-in ones.

    Raises:
      UserError: when it is no model, or cannot do what a key asks for.
    """
    name = settings.model.name
    model = model_class(name)
    if settings.model.users == "items" and not can_have_users_of_items(model):
        raise UserError(f"config key model.users cannot be 'items' with model.name {name!r}.")
    if settings.parallel.tables == "sharded" and not can_be_sharded(model):
        raise UserError(f"config key parallel.tables cannot be 'sharded' with model.name {name!r}.")
