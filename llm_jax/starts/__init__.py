"""Initial weights that are loaded instead of randomly initialised."""

from llm_jax.starts.huggingface_start import HuggingFaceStart
from llm_jax.starts.run_start import RunStart
from llm_jax.starts.start import Start, Weights

__all__ = ["HuggingFaceStart", "RunStart", "Start", "Weights"]
