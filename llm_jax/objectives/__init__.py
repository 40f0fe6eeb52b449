"""What training minimises. An objective is a config type; derive one from `Objective` to use one of your own."""

from llm_jax.objectives.batch import Batch
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.objectives.denoising import DenoisingConfig
from llm_jax.objectives.masked_lm import MaskedLMConfig
from llm_jax.objectives.mixture_of_denoisers import Denoiser, MixtureOfDenoisersConfig
from llm_jax.objectives.objective import Needs, Objective
from llm_jax.objectives.pair_objective import PairObjective
from llm_jax.objectives.span_corruption import SpanCorruptionConfig
from llm_jax.objectives.token_objective import TokenObjective

__all__ = [
    "Batch",
    "CausalLMConfig",
    "Denoiser",
    "DenoisingConfig",
    "MaskedLMConfig",
    "MixtureOfDenoisersConfig",
    "Needs",
    "Objective",
    "PairObjective",
    "SpanCorruptionConfig",
    "TokenObjective",
]
