"""Initial weights that are loaded instead of randomly initialised, and frozen models."""

from llm_jax.starts.frozen_model import FrozenModel
from llm_jax.starts.huggingface_start import HuggingFaceStart
from llm_jax.starts.run_start import RunStart
from llm_jax.starts.start import Start, Weights

__all__ = ["FrozenModel", "HuggingFaceStart", "RunStart", "Start", "Weights"]
