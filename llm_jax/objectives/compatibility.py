"""Which objective trains which architecture.

To add a row, put the objective's config into OBJECTIVES: tests then train it on every architecture that admits it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from llm_jax.layers.attention.masks import PrefixCausal
from llm_jax.models.config import ModelConfig, TransformerConfig
from llm_jax.models.families.bert import bert, electra
from llm_jax.models.families.encoder import sequence_head, span_head
from llm_jax.models.families.llama import llama
from llm_jax.models.families.mamba2 import mamba2
from llm_jax.models.families.mixtral import mixtral
from llm_jax.models.families.recurrent_gemma import recurrent_gemma
from llm_jax.models.families.switch import switch
from llm_jax.models.families.t5 import t5
from llm_jax.models.families.xlnet import xlnet
from llm_jax.models.heads import ClassHead
from llm_jax.models.multi_token_heads import ChainedHeads, ParallelHeads
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.objectives.classification import ClassificationConfig, RegressionConfig
from llm_jax.objectives.contrastive import ContrastiveConfig
from llm_jax.objectives.denoising import DenoisingConfig
from llm_jax.objectives.fill_in_the_middle import FillInTheMiddleConfig
from llm_jax.objectives.fine_tuning import FineTuningConfig
from llm_jax.objectives.masked_diffusion import MaskedDiffusionConfig
from llm_jax.objectives.masked_lm import MaskedLMConfig
from llm_jax.objectives.mixture_of_denoisers import MixtureOfDenoisersConfig
from llm_jax.objectives.multi_token import MultiTokenConfig
from llm_jax.objectives.objective import Objective
from llm_jax.objectives.permutation_lm import PermutationLMConfig
from llm_jax.objectives.prefix_lm import PrefixLMConfig
from llm_jax.objectives.question_answering import QuestionAnsweringConfig
from llm_jax.objectives.replaced_tokens import ReplacedTokensConfig
from llm_jax.objectives.sentence_order import SentenceOrderConfig
from llm_jax.objectives.sequence_to_sequence import SequenceToSequenceConfig
from llm_jax.objectives.span_corruption import SpanCorruptionConfig
from llm_jax.objectives.token_classification import TokenClassificationConfig

OBJECTIVES: Mapping[str, Objective] = {
    "causal LM": CausalLMConfig(),
    "prefix LM": PrefixLMConfig(),
    "fill-in-the-middle": FillInTheMiddleConfig(),
    "multi-token prediction": MultiTokenConfig(),
    "masked LM": MaskedLMConfig(),
    "masked LM, whole words": MaskedLMConfig(units="words"),
    "replaced tokens": ReplacedTokensConfig(),
    "masked diffusion": MaskedDiffusionConfig(),
    "permutation LM": PermutationLMConfig(),
    "span corruption": SpanCorruptionConfig(),
    "mixture of denoisers": MixtureOfDenoisersConfig(),
    "denoising": DenoisingConfig(permuted="nothing"),
    "deshuffling": DenoisingConfig.deshuffling(),
    "sequence to sequence": SequenceToSequenceConfig(),
    "classification": ClassificationConfig(),
    "regression": RegressionConfig(),
    "token classification": TokenClassificationConfig(),
    "question answering": QuestionAnsweringConfig(),
    "sentence order": SentenceOrderConfig(units="tokens"),
    "contrastive": ContrastiveConfig(pair="pair"),
    "fine-tuning": FineTuningConfig(),
}
"""A config of every objective by name."""

LENGTH = 32
VOCAB = 320
_SIZE: dict[str, Any] = {"vocab_size": VOCAB, "max_length": 2 * LENGTH}


def _decoder() -> TransformerConfig:
    return llama(2, 4, 32, hidden=64, kv_heads=2, **_SIZE)


def _parallel(decoder: TransformerConfig) -> TransformerConfig:
    """The decoder, in which the last layer is one of two heads."""
    (segment,) = decoder.segments
    trunk = dataclasses.replace(segment, repeats=segment.repeats - 1)
    return dataclasses.replace(
        decoder, segments=(trunk, dataclasses.replace(segment, repeats=1)), multi_token=ParallelHeads()
    )


ARCHITECTURES: Mapping[str, Callable[[], ModelConfig]] = {
    "decoder": lambda: _decoder(),
    "prefix decoder": lambda: _decoder().with_mask(PrefixCausal()),
    "decoder with a chain of modules": lambda: dataclasses.replace(_decoder(), multi_token=ChainedHeads()),
    "decoder with parallel heads": lambda: _parallel(_decoder()),
    "mixture decoder": lambda: mixtral(2, 4, 32, hidden=32, kv_heads=2, experts=4, **_SIZE),
    "recurrent hybrid": lambda: recurrent_gemma(3, 4, 32, hidden=64, channels=32, window=8, **_SIZE),
    "state space": lambda: mamba2(2, 32, head_dim=8, state_size=8, **_SIZE),
    "encoder": lambda: bert(2, 4, 32, **_SIZE),
    "encoder with classes of sequences": lambda: bert(2, 4, 32, **_SIZE, head=sequence_head(2)),
    "encoder with a number of sequences": lambda: bert(2, 4, 32, **_SIZE, head=sequence_head(1)),
    "encoder with classes of tokens": lambda: bert(2, 4, 32, **_SIZE, head=ClassHead(2)),
    "encoder with spans": lambda: bert(2, 4, 32, **_SIZE, head=span_head()),
    "generator and discriminator": lambda: electra(2, 4, 32, share=0.5, **_SIZE),
    "two-stream encoder": lambda: xlnet(2, 4, 32, **_SIZE),
    "encoder-decoder": lambda: t5(2, 4, 32, hidden=64, head_dim=8, **_SIZE),
    "mixture encoder-decoder": lambda: switch(2, 4, 32, hidden=32, head_dim=8, experts=4, **_SIZE),
}
"""A small model of every architecture by name."""


@dataclasses.dataclass(frozen=True)
class Combination:
    """An objective and an architecture."""

    objective: str
    architecture: str
    refusal: str | None
    """Why the objective does not train the architecture; None: it does."""


def pairs() -> list[Combination]:
    """All pairs, as the objectives' own checks decide."""
    models = {name: build() for name, build in ARCHITECTURES.items()}
    return [
        Combination(objective, architecture, _refusal(config, model))
        for objective, config in OBJECTIVES.items()
        for architecture, model in models.items()
    ]


def table() -> Table:
    """For each objective the architectures that it trains, as a table for the terminal."""
    shown = Table(caption="`llm-jax objectives --why` says why an objective does not train an architecture")
    shown.add_column("objective", no_wrap=True)
    shown.add_column("config", no_wrap=True)
    shown.add_column("trains")
    found = pairs()
    for name, config in OBJECTIVES.items():
        trained = [pair.architecture for pair in found if pair.objective == name and pair.refusal is None]
        shown.add_row(name, type(config).__name__, ", ".join(trained))
    return shown


def _refusal(objective: Objective, model: ModelConfig) -> str | None:
    try:
        objective.check(model, LENGTH)
    except ValueError as error:
        return str(error)
    return None
