"""Hierarchical Latent Relation modeling for Collaborative Metric Learning, in JAX."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Recommender", "load"]


def __getattr__(name: str) -> Any:
    # Not before they are asked for: jax reads its environment when it is imported.
    if name in __all__:
        from hlrcml_jax import recommender

        return getattr(recommender, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
