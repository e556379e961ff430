"""A run: its config, its data and its workdir."""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib

from hlrcml_jax import keys, schema, storage
from hlrcml_jax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Run:
    """A config, its data and its workdir; `build.py` builds everything else from it.

    Attributes:
      config: validated.
      dataset: prepared.
      workdir: of the run, absolute.
    """

    config: schema.Config
    dataset: Dataset
    workdir: pathlib.Path

    def with_model(self, name: str) -> "Run":
        """The same run with another model, as a baseline that needs no sphere."""
        config = keys.replaced(self.config, {"model.name": name, "model.space": "ball"})
        return dataclasses.replace(self, config=config)

    @property
    def is_refitted(self) -> bool:
        """Whether the model is trained once more, see `refitted`."""
        return self.config.train.refit and self.dataset.valid.nnz > 0

    def refitted(self) -> "Run":
        """The run that trains once more, with validation in the training part."""
        dataset = self.dataset.with_all_in_training()
        return dataclasses.replace(self, dataset=dataset, workdir=self.workdir / "refit")

    def identity(self) -> int:
        """Hash of the data and of all keys that must not change, for the metrics of checkpoints.

        Keys at their defaults are left out, so that a new key changes no hash.
        """
        known = keys.by_name(schema.Config)
        fixed = {
            name: value
            for name, value in keys.flatten(self.config).items()
            if name not in known or (not known[name].may_change and value != known[name].default)
        }
        text = json.dumps([fixed, self.dataset.fingerprint()], sort_keys=True)
        return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)

    def write_config(self) -> None:
        """Writes `config.json`: the config, the data's fingerprint, and library versions."""
        names = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
        text = {
            "config": keys.flatten(self.config),
            "data": self.dataset.fingerprint(),
            "versions": {name: importlib.metadata.version(name) for name in names},
        }
        storage.write_text(self.workdir / "config.json", json.dumps(text, indent=2) + "\n")
