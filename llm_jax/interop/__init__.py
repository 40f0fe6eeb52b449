"""Models of other libraries in and out."""

from llm_jax.interop.catalogue import catalogue
from llm_jax.interop.hf import forward, load_hf, read_config, save_hf

__all__ = ["catalogue", "forward", "load_hf", "read_config", "save_hf"]
