"""What a model is. Sizes of published ones are in families/."""

import dataclasses

from llm_jax.core.checks import check, check_positive, check_positive_if_given
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.linear import Init, Normal
from llm_jax.layers.mixers.attention import AttentionConfig
from llm_jax.layers.norms import NormConfig
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.models.stack import Execution, Segment


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Scores of the next token from a matrix of its own."""

    init: Init = Normal(0.02)
    bias: bool = False
    softcap: float | None = None
    """c in c * tanh(score / c), which keeps scores between -c and c (Gemma 2); None: they stay as they are."""

    def __post_init__(self):
        check_positive_if_given(softcap=self.softcap)

    def parameters(self, width: int, vocab_size: int) -> int:
        return (width + self.bias) * vocab_size


@dataclasses.dataclass(frozen=True)
class TiedHead:
    """Scores of the next token from the embedding table (Press and Wolf 2017, arXiv:1608.05859)."""

    softcap: float | None = None
    """As in `HeadConfig`."""

    def __post_init__(self):
        check_positive_if_given(softcap=self.softcap)

    def parameters(self, width: int, vocab_size: int) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A stack of blocks between an embedding and a head."""

    vocab_size: int
    width: int
    """Size of the residual stream."""
    max_length: int
    """Longest row of tokens; with learned positions the size of their table."""
    segments: tuple[Segment, ...]
    final_norm: NormConfig | None
    """None where the blocks leave a normalised stream."""
    embed: EmbedConfig = EmbedConfig()
    head: HeadConfig | TiedHead = TiedHead()
    execution: Execution = Execution()

    def __post_init__(self):
        check_positive(vocab_size=self.vocab_size, width=self.width, max_length=self.max_length)
        check(len(self.segments) > 0, "segments is empty: a model needs at least one segment")
        found = {repr(bias) for bias in self._relative_biases}
        check(
            len(found) <= 1,
            f"blocks have different relative biases ({'; '.join(sorted(found))}): layers of a stack share one table",
        )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(segment.repeats * len(segment.blocks) for segment in self.segments)

    @property
    def relative_bias(self) -> tuple[RelativeBiasConfig, int] | None:
        """Learned biases by relative place that the layers share, and their number of heads; None without such."""
        return next(iter(self._relative_biases), None)

    @property
    def _relative_biases(self) -> list[tuple[RelativeBiasConfig, int]]:
        mixers = [block.mixer for segment in self.segments for block in segment.blocks]
        return [
            (mixer.scores.bias, mixer.heads)
            for mixer in mixers
            if isinstance(mixer, AttentionConfig) and isinstance(mixer.scores.bias, RelativeBiasConfig)
        ]
