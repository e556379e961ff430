"""Hierarchical Latent Relation modeling for Collaborative Metric Learning, in JAX."""

__version__ = "0.1.0"
