"""Models by name, or by the dotted path of a custom class."""

import dataclasses

from hlrcml_jax import custom, registry, schema
from hlrcml_jax.errors import UserError
from hlrcml_jax.models.base import Model, Spec
from hlrcml_jax.models.sphere import Sphere


def model_class(name: str) -> type[Model]:
    """The class for a name in `registry.MODELS`, or at a dotted path (see `custom.py`).

    Raises:
      UserError: when the path is not that of a model.
    """
    imported = custom.resolve("model.name", registry.MODELS.get(name, name))
    if not (isinstance(imported, type) and issubclass(imported, Model)):
        raise UserError(
            f"config key model.name: {name} is no model; it must be a subclass of "
            f"{Model.__module__}.{Model.__name__}."
        )
    return imported


def make_model(options: schema.Model) -> Model:
    """The model of a config's `model` section.

    Each field of its class takes the value of the config key with its name, in the model's own
    section (`model.als`), in `model.options` or in `model`; else its default.
    """
    made = _make(options, model_class(options.name))
    return Sphere(made, options.gates[0]) if options.space == "sphere" else made


def _make(options: schema.Model, made: type[Model]) -> Model:
    own = getattr(options, options.name.replace("-", "_"), None)
    values = {}
    for field in dataclasses.fields(made):
        if not field.init or field.name in custom.FLAX_FIELDS:
            continue
        if hasattr(own, field.name):
            values[field.name] = getattr(own, field.name)
        elif field.name in options.options:
            values[field.name] = options.options[field.name]
        elif hasattr(options, field.name):
            values[field.name] = getattr(options, field.name)
    return made(**values)


def check(config: schema.Config) -> None:
    """Checks that the model supports the other keys.

    Raises:
      UserError: naming a key that it does not support.
    """
    name = config.model.name
    spec = model_class(name).spec
    if config.model.space == "sphere" and not can_be_on_sphere(spec):
        able = [name for name in registry.MODELS if can_be_on_sphere(model_class(name).spec)]
        raise UserError(
            f"config key model.space cannot be 'sphere' with model.name {name!r}; it can with "
            f"{', '.join(able)}. Set model.space=ball."
        )
    if config.data.weight and spec.rows_are_histories:
        raise UserError(
            f"config key data.weight cannot be used with model.name {name!r}, which counts each "
            "interaction once; leave it empty, or choose another model."
        )
    asked = {
        "users_from_items": ("model.users", "items", config.model.users),
        "sharded": ("parallel.tables", "sharded", config.parallel.tables),
    }
    for ability, (key, value, given) in asked.items():
        if given == value and not getattr(model_class(name).spec, ability):
            able = [name for name in registry.MODELS if getattr(model_class(name).spec, ability)]
            raise UserError(
                f"config key {key} cannot be {value!r} with model.name {name!r}; it can with "
                f"{', '.join(able)}."
            )


def can_be_on_sphere(spec: Spec) -> bool:
    """Whether a model compares by distance, from rows of its own alone."""
    return spec.ball and not spec.constants
