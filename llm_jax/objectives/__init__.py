"""What training minimises. An objective is a config type; derive one from `Objective` to use one of your own."""

from llm_jax.objectives.batch import Batch
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.objectives.denoising import DenoisingConfig
from llm_jax.objectives.fill_in_the_middle import FillInTheMiddleConfig
from llm_jax.objectives.masked_diffusion import MaskedDiffusionConfig
from llm_jax.objectives.masked_lm import MaskedLMConfig
from llm_jax.objectives.mixture_of_denoisers import Denoiser, MixtureOfDenoisersConfig
from llm_jax.objectives.multi_token import MultiTokenConfig
from llm_jax.objectives.objective import Needs, Objective
from llm_jax.objectives.pair_objective import PairObjective
from llm_jax.objectives.permutation_lm import PermutationLMConfig
from llm_jax.objectives.prefix_lm import PrefixLMConfig
from llm_jax.objectives.span_corruption import SpanCorruptionConfig
from llm_jax.objectives.token_objective import TokenObjective

__all__ = [
    "Batch",
    "CausalLMConfig",
    "Denoiser",
    "DenoisingConfig",
    "FillInTheMiddleConfig",
    "MaskedDiffusionConfig",
    "MaskedLMConfig",
    "MixtureOfDenoisersConfig",
    "MultiTokenConfig",
    "Needs",
    "Objective",
    "PairObjective",
    "PermutationLMConfig",
    "PrefixLMConfig",
    "SpanCorruptionConfig",
    "TokenObjective",
]
