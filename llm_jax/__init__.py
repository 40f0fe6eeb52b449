"""A laboratory for transformer research in JAX and Flax."""

from llm_jax.experiment import Experiment, load_experiment

__all__ = ["Experiment", "load_experiment"]
