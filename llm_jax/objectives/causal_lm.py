"""Causal language modelling: predict every token from those before it in its document."""

from collections.abc import Mapping
from typing import Any

from llm_jax.core.configclass import configclass
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.objective import Needs
from llm_jax.objectives.token_objective import TokenObjective


@configclass
class CausalLMConfig(TokenObjective):
    """Next-token prediction (Radford et al. 2018)."""

    needs = Needs("causal")

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        return Batch.next_tokens(rows)
