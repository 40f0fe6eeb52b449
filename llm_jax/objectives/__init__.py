"""What training minimises. An objective is a config type; derive one from `Objective` to use one of your own."""

from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.objectives.objective import Objective

__all__ = [
    "CausalLMConfig",
    "Objective",
]
