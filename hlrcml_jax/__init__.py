"""Hierarchical Latent Relation modeling for Collaborative Metric Learning, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hlrcml_jax.config import make_config
    from hlrcml_jax.recommender import Recommender, fit, load
    from hlrcml_jax.runs.experiment import fit_all, train_and_evaluate

__all__ = ["Recommender", "fit", "fit_all", "load", "make_config", "train_and_evaluate"]
__version__ = "0.1.0"

_MODULES = {
    "Recommender": "recommender",
    "fit": "recommender",
    "fit_all": "runs.experiment",
    "load": "recommender",
    "make_config": "config",
    "train_and_evaluate": "runs.experiment",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, because jax reads its environment at import.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
