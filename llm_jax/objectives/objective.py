"""What training minimises, whatever the model."""

import abc
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics
from llm_jax.data.examples import Examples
from llm_jax.data.row_source import AnyExamples
from llm_jax.models import count
from llm_jax.models.build import Model
from llm_jax.models.config import (
    MAKE_CAUSAL,
    EncoderDecoderConfig,
    GeneratorDiscriminatorConfig,
    ModelConfig,
    TransformerConfig,
)
from llm_jax.models.heads import AnyHead, HeadConfig, TiedHead
from llm_jax.tokenizers.tokenizer import Tokenizer

AnyBatch = Any
"""A tree of arrays with the batch as their first axis, of which the second, where there is one, is the length: what
`Objective.batch` returns. Only the objective knows its fields."""

Direction = Literal["causal", "bidirectional", "encoder-decoder", "generator-discriminator"]


class NamedModel(NamedTuple):
    """A model beside the trained one, as a loss runs it: `models.build.applied(model, params, inputs)`."""

    model: Model
    params: Any


Models = Mapping[str, NamedModel]
"""The frozen models of an experiment by name, such as a teacher or a reference."""
NO_MODELS: Models = MappingProxyType({})


class Needs(NamedTuple):
    """What an objective requires of a model."""

    direction: Direction
    """Of the model: a causal decoder, an encoder in which tokens read later ones too, an encoder-decoder, or two
    encoders, generator and discriminator."""
    heads: tuple[type[AnyHead | None], ...] = (HeadConfig, TiedHead)
    """Types of the head: of an encoder-decoder that of its decoder, of two encoders that of the discriminator.
    NoneType: a model without a head."""
    models: tuple[str, ...] = ()
    """Names of the frozen models that the loss runs beside the trained one."""
    multi_token: bool = False
    """Whether the model has modules that predict tokens after the next one, which other objectives would leave
    untrained."""


@configclass
class Objective(abc.ABC):
    """A loss, the examples that it is computed on, and the models that it is for. Derive a configclass from it to train
    with a loss of your own."""

    needs: ClassVar[Needs] = Needs("causal")
    predicts_text: ClassVar[bool] = True
    """Whether every token of the text is a target once, given those before it, so that the loss can be stated in bits
    per byte."""

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: if the objective cannot train the model on sequences of this length, saying which model it could.
            The base compares the model with `needs`.
        """
        name, needs = type(self).__name__, self.needs
        check(
            isinstance(model, _CONFIGS[needs.direction]),
            f"objective {name} trains {_TRAINED[needs.direction]} and model is of type {type(model).__name__}: use "
            f"{_MODELS[needs.direction]}, or {_OTHERS[type(model)]}",
        )
        decoder = model.stacks[-1]
        if needs.direction == "causal":
            check(
                decoder.causal,
                f"objective {name} requires a causal model, and {' and '.join(decoder.non_causal)} of the model is "
                f"not causal: {MAKE_CAUSAL}; MaskedLMConfig trains encoders",
            )
        if needs.direction == "bidirectional":
            check(
                not decoder.causal,
                f"objective {name} requires a bidirectional model, and the model is causal: set the mask of its "
                "mixers to Bidirectional(), or use CausalLMConfig",
            )
        check(
            isinstance(decoder.head, needs.heads),
            f"objective {name} requires a head of type {' or '.join(head.__name__ for head in needs.heads)} and the "
            f"model's is {type(decoder.head).__name__}: change model.head, or use an objective for such a head "
            "(`llm-jax objectives`)",
        )
        check(
            isinstance(model, EncoderDecoderConfig) or not decoder.has_cross_attention,
            f"objective {name} provides no encoder output, and blocks of the model have `cross` attention: remove it, "
            "or use an encoder-decoder",
        )
        check(
            needs.multi_token or decoder.multi_token is None,
            f"objective {name} does not train the modules of model.multi_token: set it to None, or use "
            "MultiTokenConfig",
        )
        check(
            not needs.multi_token or decoder.multi_token is not None,
            f"objective {name} predicts several tokens from one position and model.multi_token is None: set it to "
            "ParallelHeads or ChainedHeads, or use CausalLMConfig",
        )

    def check_frozen(self, model: ModelConfig, frozen: Mapping[str, ModelConfig]) -> None:
        """
        Args:
          frozen: the frozen models of the experiment by name.

        Raises:
          ValueError: if they are not those that the objective needs. The base compares the names with `needs.models`.
        """
        name, needed = type(self).__name__, self.needs.models
        missing, unused = sorted(set(needed) - set(frozen)), sorted(set(frozen) - set(needed))
        check(
            not missing,
            f"objective {name} needs frozen models named {', '.join(needed)}, and the experiment has no "
            f"{' and no '.join(missing)}: add a FrozenModel of that name to `frozen`",
        )
        check(
            not unused,
            f"objective {name} does not run the frozen models {', '.join(unused)}: remove them from `frozen`, or "
            "choose an objective that runs them",
        )

    @property
    def compares_rows(self) -> bool:
        """Whether the loss of a row depends on the other rows of its batch. Then the loss must see the whole batch:
        an experiment refuses microbatches and `jax.pmap`."""
        return False

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        """Names of the tokens that the objective uses besides those of text, such as a mask token. `special_tokens.ids`
        finds them in the tokenizer, or gives them the last ids of the model's vocabulary."""
        return ()

    def texts(self, document: str) -> Iterable[str]:
        """The texts of a document on which a tokenizer is trained: of a record, those of the fields that are read."""
        return (document,)

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> AnyExamples:
        """How documents and packed rows, or records, become rows of a batch.

        Args:
          tokenizer: None where the data are tokens already.

        Raises:
          ValueError: if the tokenizer lacks what the objective needs.
        """
        return Examples()

    @abc.abstractmethod
    def batch(self, rows: Mapping[str, Any]) -> AnyBatch:
        """The batch of stacked rows, numpy arrays [B, ...] as `examples` leaves them."""

    @abc.abstractmethod
    def loss(
        self,
        model: Any,
        params: Any,
        batch: AnyBatch,
        key: jax.Array | None = None,
        whole: Metrics | None = None,
        models: Models = NO_MODELS,
    ) -> tuple[jax.Array, Metrics]:
        """Summed loss over the batch's targets, and metrics, of which 'loss' is a `Ratio`: sums and counts, so that
        microbatches, devices and processes combine exactly.

        Args:
          model: a module; `models.build.applied(model, params, inputs)` runs it.
          key: for dropout; None where nothing is dropped.
          whole: metrics of the batch of which this one is a part; None: this is all of it. Only passed if there is
            such a batch.
          models: the frozen models. Only passed if the experiment has some.
        """

    def training_flops(self, model: ModelConfig, sequence_length: int) -> float:
        """FLOPs of forward and backward pass of the trained model for each of the `sequence_length` tokens of a row."""
        return count.training_flops(model, sequence_length)

    def frozen_flops(self, frozen: Mapping[str, ModelConfig], sequence_length: int) -> float:
        """FLOPs of the frozen models for each of the `sequence_length` tokens of a row. The base counts one forward
        pass of each over the row."""
        return sum(count.forward_flops(model, sequence_length) for model in frozen.values())

    def abstract_batch(
        self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int, batch_size: int
    ) -> AnyBatch:
        """Shapes and dtypes of a batch of the whole run, without data."""
        examples = self.examples(model, tokenizer, sequence_length)
        row = examples.row(examples.padding(sequence_length + 1), np.random.default_rng(0))
        batch = self.batch({name: array[None] for name, array in row.items()})
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), batch)


_TRAINED = {
    "causal": "decoders",
    "bidirectional": "encoders",
    "encoder-decoder": "encoder-decoders",
    "generator-discriminator": "a generator and a discriminator",
}
_CONFIGS = {
    "causal": TransformerConfig,
    "bidirectional": TransformerConfig,
    "encoder-decoder": EncoderDecoderConfig,
    "generator-discriminator": GeneratorDiscriminatorConfig,
}
_MODELS = {
    "causal": "a decoder",
    "bidirectional": "an encoder",
    "encoder-decoder": "an encoder-decoder, such as those of models.families.t5 and bart",
    "generator-discriminator": "a GeneratorDiscriminatorConfig, such as those of models.families.bert.electra",
}
_OTHERS = {
    TransformerConfig: "CausalLMConfig for decoders and MaskedLMConfig for encoders",
    EncoderDecoderConfig: "SpanCorruptionConfig, SequenceToSequenceConfig or another objective of encoder-decoders",
    GeneratorDiscriminatorConfig: "ReplacedTokensConfig",
}
"""What trains a model of the type."""
