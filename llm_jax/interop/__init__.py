"""Import and export of models of Hugging Face's transformers."""

from llm_jax.interop.catalogue import catalogue, initialisations
from llm_jax.interop.decoder_start import decoder_start
from llm_jax.interop.hf import load_hf, read_config, save_hf
from llm_jax.interop.model_inputs import forward

__all__ = ["catalogue", "decoder_start", "forward", "initialisations", "load_hf", "read_config", "save_hf"]
