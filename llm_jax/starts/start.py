"""Configs of starts: where initial weights are loaded from."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.models.config import ModelConfig
from llm_jax.tokenizers.pipelines import token_ids
from llm_jax.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Weights:
    """Description of stored weights. The weights themselves are read only by `load`."""

    origin: str
    """Their location, for messages and for the run card."""
    config: ModelConfig
    """Config of their model."""
    tokens: Callable[[], dict[str, int]]
    """Returns the id of each token; empty if unknown."""
    digest: str | None
    """Digest of the tokenizer that they were trained with; None if unknown."""
    load: Callable[[Precision], Any]
    """Returns the parameter tree of the model of `config`, in the dtype of parameters."""


@configclass(kw_only=True)
class Start(abc.ABC):
    """Where initial weights are loaded from. Derive a configclass from it to read weights of another format.

    The weights must be those of the experiment's model, or of the same model without experts. In the latter case every
    expert is initialised from the dense ffn that it replaces (models/upcycle.py). `fresh` and `resized_vocabulary`
    allow differences.
    """

    fresh: tuple[str, ...] = ()
    """Prefixes of the names of parameters, such as 'head', that are randomly initialised instead of loaded."""
    resized_vocabulary: bool = False
    """Whether the vocabulary size may differ. Ids that both models have must be the same tokens, and are loaded. Other
    ids are randomly initialised."""

    def __post_init__(self):
        check("" not in self.fresh, "start.fresh has an empty name, which matches every parameter: remove it")

    @abc.abstractmethod
    def find(self) -> Weights:
        """Finds the weights and reads their description.

        Raises:
          ValueError: if there are no weights, or their description cannot be read.
        """


def check_tokens(weights: Weights, tokenizer: Tokenizer, resized: bool) -> None:
    """Checks that token ids have the same meaning for the weights and in `tokenizer`. Passes if the tokenizer of the
    weights is unknown.

    Args:
      resized: whether to compare only ids that both have.

    Raises:
      ValueError: if they differ. The message gives a token whose ids differ.
    """
    if weights.digest == tokenizer.digest:
        return
    remedy = "train with the tokenizer of the weights, or start from weights that were trained with this one"
    check(
        weights.digest is None or resized,
        f"{weights.origin} was trained with tokenizer {weights.digest} and this one is {tokenizer.digest}: {remedy}",
    )
    theirs = weights.tokens()
    if not theirs:
        return
    ours = token_ids(tokenizer.pipeline())
    largest = (min if resized else max)(max(theirs.values()), max(ours.values()))
    for name in sorted({*theirs, *ours}):
        pair = theirs.get(name), ours.get(name)
        if pair[0] != pair[1] and any(one is not None and one <= largest for one in pair):
            raise ValueError(
                f"token {name!r} has id {pair[0]} in {weights.origin} and {pair[1]} in this tokenizer: {remedy}"
            )
