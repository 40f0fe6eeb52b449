"""Configs of models. Sizes of published models are in families/."""

import dataclasses
from typing import Any, Self

from llm_jax.core.checks import check, check_fraction, check_positive, check_positive_if_given, given
from llm_jax.core.configclass import configclass
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.kernels import Kernel
from llm_jax.layers.attention.latent import LatentAttentionConfig
from llm_jax.layers.attention.masks import Mask, Permuted, PrefixCausal
from llm_jax.layers.attention.relative import RelativeAttentionConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.norms import Norm
from llm_jax.layers.positions.relative_bias import LayerRelativeBiasConfig, RelativeBiasConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.heads import AnyHead, ClassHead, HeadConfig, TiedHead
from llm_jax.models.multi_token_heads import MultiTokenHeads
from llm_jax.models.stack import Execution, Segment

MAKE_CAUSAL = (
    "give mixers the mask Causal(), set allow_future=True where a part has that field and may read later tokens, or "
    "choose another type"
)
"""Advice of error messages: how to make a model causal."""


_MASKED = AttentionConfig | LatentAttentionConfig | RelativeAttentionConfig
"""Mixers with a mask."""

MAX_DEPTH = 100_000
"""Ten times the depth of the deepest trained network (Xiao et al. 2018, arXiv:1806.05393: 10,000 layers)."""


@configclass
class TransformerConfig:
    """A stack of blocks between an embedding and a head."""

    vocab_size: int | None
    """None: the stack has no embedding table; an encoder may use that of its decoder."""
    width: int
    """Size of the residual stream."""
    max_length: int
    """Maximum sequence length; with learned positions the size of their table."""
    segments: tuple[Segment, ...]
    final_norm: Norm | None
    """None if the output of the blocks is already normalised."""
    embed: EmbedConfig = EmbedConfig()
    head: AnyHead | None = TiedHead()
    """None: the model returns hidden states only."""
    execution: Execution = Execution()
    dropout: float = 0.0
    """Dropout rate of the output of the final norm in training (T5, XLNet)."""
    multi_token: MultiTokenHeads | None = None
    """Modules that predict tokens after the next one in training; None: there are none."""

    def __post_init__(self):
        check_fraction(dropout=self.dropout)
        check_positive(width=self.width, max_length=self.max_length)
        check_positive_if_given(vocab_size=self.vocab_size)
        check(
            self.vocab_size is not None or not isinstance(self.head, HeadConfig | TiedHead),
            f"vocab_size is None and head {type(self.head).__name__} requires a vocabulary: set vocab_size, or head "
            "to None",
        )
        check(
            not isinstance(self.head, TiedHead)
            or self.head.transform is not None
            or self.embed.table_width(self.width) == self.width,
            f"embed.factorized.width is {self.embed.table_width(self.width)} and width {self.width}: a tied head "
            "requires a `transform` from width to factorized.width",
        )
        check(len(self.segments) > 0, "segments is empty: a model needs at least one segment")
        if self.depth > MAX_DEPTH:
            weights = sum(one.repeats * block.parameters(self.width) for one in self.segments for block in one.blocks)
            raise ValueError(
                f"segments have {self.depth:,} blocks with {weights:.3g} weights, {4e-12 * weights:,.3g} TB in "
                f"float32: a model has at most {MAX_DEPTH:,} blocks; lower `repeats`"
            )
        remat = self.execution.remat
        check(
            isinstance(remat, str) or len(remat) == len(self.segments),
            f"execution.remat is {remat} and there are {len(self.segments)} segments: set one policy, or one per "
            "segment",
        )
        check(
            not self.embed.target
            or (self.permuted and all(isinstance(mixer, RelativeAttentionConfig) for mixer in self._mixers)),
            "embed.target is True and not every mixer is RelativeAttentionConfig with the mask Permuted: with others "
            "tokens would attend to targets, or targets to the tokens that they predict; set embed.target to False, "
            "or change the mixers",
        )
        if self.vocab_size is not None:
            self.check_vocabulary(self.vocab_size)
        found = {repr(bias) for bias in self._relative_biases}
        check(
            len(found) <= 1,
            f"blocks have different relative biases ({'; '.join(sorted(found))}): the layers of a stack share one "
            "table; make them equal, or use LayerRelativeBiasConfig, which has one for each",
        )
        if self.multi_token is not None:
            self._check_multi_token(self.multi_token)

    def _check_multi_token(self, heads: MultiTokenHeads) -> None:
        name = f"multi_token is {type(heads).__name__}"
        check(
            self.causal,
            f"{name} and {' and '.join(self.non_causal)} is not causal: only a causal model predicts the tokens after "
            f"the next one; {MAKE_CAUSAL}, or set multi_token to None",
        )
        check(
            self.vocab_size is not None and isinstance(self.head, HeadConfig | TiedHead),
            f"{name}, vocab_size is {self.vocab_size} and head is {type(self.head).__name__}: its modules share "
            "embedding and head; set vocab_size and a head of type HeadConfig or TiedHead, or multi_token to None",
        )
        check(
            not self.has_cross_attention,
            f"{name} and blocks have `cross` attention: only a model without an encoder has such modules; set "
            "multi_token to None",
        )
        heads.check(self.segments)

    def check_vocabulary(self, size: int) -> None:
        """
        Raises:
          ValueError: if a router does not support a vocabulary of `size` tokens.
        """
        for layer in self.experts:
            layer.router.check_vocabulary(size)

    def with_kernel(self, kernel: Kernel) -> Self:
        """The same model with another attention kernel in all of its blocks."""
        return self._with_mixers(kernel=kernel)

    def with_mask(self, mask: Mask) -> Self:
        """The same model with another mask in all of its blocks.

        Raises:
          ValueError: if a mixer has no mask, such as a recurrence.
        """
        without = {type(mixer).__name__ for mixer in self._mixers if not isinstance(mixer, _MASKED)}
        check(
            not without,
            f"mixers of the model are of type {', '.join(sorted(without))}, which has no mask, and "
            f"{type(mask).__name__} is to be the mask of all: use a model with attention in every block",
        )
        return self._with_mixers(mask=mask)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(segment.repeats * len(segment.blocks) for segment in self.segments)

    @property
    def stacks(self) -> tuple["TransformerConfig", ...]:
        """The stacks of the model: this one."""
        return (self,)

    @property
    def causal(self) -> bool:
        """Whether the model is causal, so that it can decode autoregressively."""
        return not self.non_causal

    @property
    def non_causal(self) -> tuple[str, ...]:
        """Type names of the parts that are not causal, without duplicates."""
        found = [type(mixer).__name__ for mixer in self._mixers if not mixer.causal]
        found += [name for block in self._blocks if block.ffn is not None for name in block.ffn.non_causal]
        return tuple(dict.fromkeys(found))

    @property
    def permuted(self) -> bool:
        """Whether all mixers have the mask `Permuted`, which follows the factorisation order of the inputs."""
        return self._all_have(Permuted())

    @property
    def prefixed(self) -> bool:
        """Whether all mixers have the mask `PrefixCausal`, which follows the prefixes of the inputs."""
        return self._all_have(PrefixCausal())

    @property
    def has_cross_attention(self) -> bool:
        """Whether a block has cross-attention."""
        return any(block.cross is not None for block in self._blocks)

    @property
    def experts(self) -> tuple[MoEConfig, ...]:
        """The MoE layers."""
        return tuple(block.ffn for block in self._blocks if isinstance(block.ffn, MoEConfig))

    @property
    def relative_bias(self) -> tuple[RelativeBiasConfig, int] | None:
        """The relative position bias that the layers share, and its number of heads; None without one."""
        return next(iter(self._relative_biases), None)

    def _all_have(self, mask: Mask) -> bool:
        return all(isinstance(mixer, _MASKED) and mixer.mask == mask for mixer in self._mixers)

    def _with_mixers(self, **fields: Any) -> Self:
        def replaced(block: BlockConfig) -> BlockConfig:
            return dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, **fields))

        segments = (dataclasses.replace(one, blocks=tuple(map(replaced, one.blocks))) for one in self.segments)
        return dataclasses.replace(self, segments=tuple(segments))

    @property
    def _mixers(self) -> list[Mixer]:
        return [block.mixer for block in self._blocks]

    @property
    def _blocks(self) -> list[BlockConfig]:
        return [block for segment in self.segments for block in segment.blocks]

    @property
    def _relative_biases(self) -> list[tuple[RelativeBiasConfig, int]]:
        return [
            (mixer.scores.bias, mixer.heads)
            for mixer in self._mixers
            if isinstance(mixer, AttentionConfig)
            and isinstance(mixer.scores.bias, RelativeBiasConfig)
            and not isinstance(mixer.scores.bias, LayerRelativeBiasConfig)
        ]


@configclass
class EncoderDecoderConfig:
    """An encoder and a decoder with cross-attention to the encoder output (Vaswani et al. 2017, 3)."""

    encoder: TransformerConfig
    """Encoder without a head. With `vocab_size` None it uses the decoder's embedding table."""
    decoder: TransformerConfig

    def __post_init__(self):
        check(
            self.encoder.head is None,
            f"encoder.head is {self.encoder.head}: only the decoder has a head; set it to None",
        )
        check(
            self.decoder.has_cross_attention,
            "no block of the decoder has `cross` attention: at least one is required to read the encoder output",
        )
        check(
            self.encoder.width == self.decoder.width,
            f"encoder.width is {self.encoder.width} and decoder.width {self.decoder.width}: they must be equal",
        )
        vocab_size = given(
            self.decoder.vocab_size,
            "decoder.vocab_size is None: the decoder requires a table, which an encoder without vocab_size shares; "
            "set decoder.vocab_size",
        )
        check(
            self.encoder.vocab_size is not None or self.encoder.embed.factorized == self.decoder.embed.factorized,
            "encoder and decoder share a table and embed.factorized differs between them: make it equal",
        )
        check(
            self.decoder.causal,
            f"{' and '.join(self.decoder.non_causal)} of the decoder is not causal: a decoder must be causal; "
            f"{MAKE_CAUSAL}",
        )
        if self.encoder.vocab_size is None:
            self.encoder.check_vocabulary(vocab_size)

    @property
    def stacks(self) -> tuple[TransformerConfig, ...]:
        """The stacks of the model: encoder and decoder."""
        return self.encoder, self.decoder

    @property
    def width(self) -> int:
        """Size of both residual streams."""
        return self.decoder.width

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the decoder."""
        return given(self.decoder.vocab_size, "decoder.vocab_size is None: set it")

    @property
    def max_length(self) -> int:
        """Maximum length that both encoder and decoder support."""
        return min(self.encoder.max_length, self.decoder.max_length)


@configclass
class GeneratorDiscriminatorConfig:
    """An encoder that predicts masked tokens, and an encoder that finds the tokens that the first one replaced (Clark
    et al. 2020, arXiv:2003.10555, 3).

    Both share the embedding of tokens, positions and types, with its norm (3.2: weight sharing; `embeddings` of
    model/modeling.py in github.com/google-research/electra). The generator projects it to its own width.
    """

    generator: TransformerConfig
    """Encoder without vocabulary, positions, types and head; usually narrower than the discriminator."""
    discriminator: TransformerConfig
    """Encoder with the embedding, and a head of one class for every token. Its output is that of the model."""
    head: TiedHead
    """Head of the generator, tied to the embedding table."""

    def __post_init__(self):
        generator, discriminator, embed = self.generator, self.discriminator, self.generator.embed
        for name, stack in (("generator", generator), ("discriminator", discriminator)):
            check(
                not stack.causal and not stack.has_cross_attention and not stack.permuted,
                f"{name} is not an encoder: set the mask of its mixers to Bidirectional(), and `cross` to None",
            )
        check(
            generator.vocab_size is None and generator.head is None,
            f"generator.vocab_size is {generator.vocab_size} and generator.head {type(generator.head).__name__}: the "
            "table is the discriminator's and the head is `head`; set both to None",
        )
        check(
            embed.position is None and not embed.types and embed.norm is None and embed.scale == 1,
            "generator.embed has positions, types, a norm or a scale: they are the discriminator's; use "
            "EmbedConfig(factorized=...) with no other part",
        )
        shared = discriminator.embed.sum_width(discriminator.width)
        check(
            embed.table_width(generator.width) == shared,
            f"generator.embed reads vectors of {embed.table_width(generator.width)} features and the embedding of the "
            f"discriminator has {shared}: set generator.embed.factorized to FactorizedConfig({shared}), or to None if "
            "generator.width is equal",
        )
        given(discriminator.vocab_size, "discriminator.vocab_size is None: it has the embedding of both; set it")
        check(
            isinstance(discriminator.head, ClassHead)
            and (discriminator.head.classes, discriminator.head.of) == (1, "token"),
            f"discriminator.head is {discriminator.head}: it must be ClassHead(1), one score for every token",
        )
        check(
            self.head.transform is not None or generator.width == self._table_width,
            f"generator.width is {generator.width} and the embedding table has {self._table_width} features: `head` "
            "requires a `transform` from the one to the other",
        )
        generator.check_vocabulary(self.vocab_size)

    @property
    def stacks(self) -> tuple[TransformerConfig, ...]:
        """The stacks of the model: generator and discriminator."""
        return self.generator, self.discriminator

    @property
    def width(self) -> int:
        """Size of the residual stream of the discriminator."""
        return self.discriminator.width

    @property
    def vocab_size(self) -> int:
        """Vocabulary size."""
        return given(self.discriminator.vocab_size, "discriminator.vocab_size is None: set it")

    @property
    def max_length(self) -> int:
        """Maximum length that both stacks support."""
        return min(self.generator.max_length, self.discriminator.max_length)

    @property
    def head_sizes(self) -> tuple[int, int, int]:
        """Width, vocabulary size and width of the embedding table, of which the generator's head is made."""
        return self.generator.width, self.vocab_size, self._table_width

    @property
    def _table_width(self) -> int:
        return self.discriminator.embed.table_width(self.discriminator.width)


ModelConfig = TransformerConfig | EncoderDecoderConfig | GeneratorDiscriminatorConfig
