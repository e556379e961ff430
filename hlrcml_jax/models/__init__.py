"""Models by their names in configs, or by the dotted paths of one's own."""

import dataclasses

from hlrcml_jax import custom, schema
from hlrcml_jax.errors import UserError
from hlrcml_jax.models.base import Model


def model_class(name: str) -> type[Model]:
    """The class of a name in `schema.MODELS` or of a dotted path, see `custom.py`.

    Raises:
      UserError: when the path names no model.
    """
    found = custom.resolve("model.name", schema.MODELS.get(name, name))
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise UserError(
            f"config key model.name: {name} is no model; models are subclasses of "
            f"{Model.__module__}.{Model.__name__}."
        )
    return found


def make_model(options: schema.Model) -> Model:
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


def check(config: schema.Config) -> None:
    """Checks that the model can do what other keys ask for.

    Raises:
      UserError: when it is no model, or cannot.
    """
    name = config.model.name
    asked = {
        "users_from_items": ("model.users", "items", config.model.users),
        "sharded": ("parallel.tables", "sharded", config.parallel.tables),
    }
    for ability, (key, value, given) in asked.items():
        if given == value and not getattr(model_class(name).spec, ability):
            able = [name for name in schema.MODELS if getattr(model_class(name).spec, ability)]
            raise UserError(
                f"config key {key} cannot be {value!r} with model.name {name!r}; it can with "
                f"{', '.join(able)}."
            )
