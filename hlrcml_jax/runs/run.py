"""A run: its config, its data and its workdir."""

import dataclasses
import pathlib

from hlrcml_jax import keys, schema
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
        """The same run with another model, as a baseline."""
        config = keys.replaced(self.config, {"model.name": name})
        return dataclasses.replace(self, config=config)
