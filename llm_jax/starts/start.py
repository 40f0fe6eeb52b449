"""Starts as configs: where the weights come from that training begins with."""

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
    """Weights that exist. Nothing is read but what describes them, until `load`."""

    origin: str
    """Where they are, for messages and for the run's card."""
    config: ModelConfig
    """Of the model that they are the weights of."""
    tokens: Callable[[], dict[str, int]]
    """Id of each token; empty where that is not known."""
    digest: str | None
    """Of the tokenizer that they were trained with; None where that is not known."""
    load: Callable[[Precision], Any]
    """The parameter tree of the model of `config`, in the number type of parameters."""


@configclass(kw_only=True)
class Start(abc.ABC):
    """Weights that training begins with. Derive a configclass from it to read weights of another format.

    The weights must be those of the experiment's model, or of the same model without experts: then experts begin as
    copies of the ffn whose place they take (models/upcycle.py). `fresh` and `resized_vocabulary` name what may differ.
    """

    fresh: tuple[str, ...] = ()
    """Parameters that are drawn whatever the weights hold, by the beginning of their names, such as 'head'."""
    resized_vocabulary: bool = False
    """Whether the number of tokens may differ. Ids that both models have must be the same tokens, and keep their
    weights; those of further ids are drawn."""

    def __post_init__(self):
        check("" not in self.fresh, "start.fresh holds an empty name, which is the beginning of every name: remove it")

    @abc.abstractmethod
    def find(self) -> Weights:
        """
        Raises:
          ValueError: if there are no weights, or what describes them cannot be read.
        """


def check_tokens(weights: Weights, tokenizer: Tokenizer, resized: bool) -> None:
    """Checks that token ids mean the same for the weights and in `tokenizer`. Weights whose tokenizer is not known
    pass.

    Args:
      resized: whether only ids that both have are compared.

    Raises:
      ValueError: naming a token whose ids differ.
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
