"""Selective classification in JAX: classifiers that know when not to answer."""

__version__ = "0.1.0"
