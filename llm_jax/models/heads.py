"""Output heads: scores of the vocabulary or of classes from the last hidden states.

Legend: B batch, T length, D model width, E width of the embedding, V vocabulary, C classes.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_fraction, check_one_of, check_positive, check_positive_if_given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.activations import ACTIVATIONS, Activation
from llm_jax.layers.broadcast import broadcast
from llm_jax.layers.initialisers import Init, Normal, Zero, annotated
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.norms import Norm
from llm_jax.layers.roles import Role
from llm_jax.sharding import axes


@configclass
class TransformConfig:
    """norm(activation(dense(x))) before the scores, as in BERT's code (Devlin et al. 2019, arXiv:1810.04805, A.2)."""

    activation: Activation | None = "gelu"
    norm: Norm | None = None
    bias: bool = True
    init: Init = Normal(0.02)
    width: int | None = None
    """Number of output features, for a head with its own matrix. None: the number of input features, or for a tied head
    the width of the embedding."""

    def __post_init__(self):
        check_positive_if_given(width=self.width)
        if self.activation is not None:
            check_one_of("activation", self.activation, ACTIVATIONS)

    def parameters(self, width: int, out: int) -> int:
        """Number of parameters from `width` to `out` features."""
        return (width + self.bias) * out + (self.norm.parameters(out) if self.norm else 0)


@configclass
class HeadConfig:
    """Scores of the vocabulary from an untied matrix."""

    init: Init = Normal(0.02)
    bias: bool = False
    softcap: float | None = None
    """c in c * tanh(score / c), which keeps scores between -c and c (Gemma 2); None: no cap."""
    transform: TransformConfig | None = None
    bias_init: Init = Zero()

    def __post_init__(self):
        check_positive_if_given(softcap=self.softcap)

    def parameters(self, width: int, vocab_size: int, embed_width: int) -> int:
        """Number of parameters of the head, without tied ones."""
        read = self.read_width(width)
        transform = self.transform.parameters(width, read) if self.transform else 0
        return transform + (read + self.bias) * vocab_size

    def read_width(self, width: int) -> int:
        """Number of input features of the scores' matrix."""
        return (self.transform and self.transform.width) or width

    def matrix_flops(self, width: int, vocab_size: int, embed_width: int) -> int:
        """Forward FLOPs per token."""
        return 2 * self.read_width(width) * (vocab_size + (width if self.transform else 0))


@configclass
class ScaledHead(HeadConfig):
    """`HeadConfig` of hidden states times `scale` (UMT5 in version 5 of transformers)."""

    scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(scale=self.scale)


@configclass
class TiedHead:
    """Scores of the vocabulary from the embedding table (Press and Wolf 2017, arXiv:1608.05859)."""

    softcap: float | None = None
    """As in `HeadConfig`."""
    bias: bool = False
    scale: float = 1.0
    """Factor of the hidden states; one over the square root of the width in T5."""
    transform: TransformConfig | None = None
    """Required if the embedding is narrower than the model: it maps the model width to the embedding width."""

    def __post_init__(self):
        check_positive(scale=self.scale)
        check_positive_if_given(softcap=self.softcap)
        _check_no_width(self.transform)

    def parameters(self, width: int, vocab_size: int, embed_width: int) -> int:
        """Number of parameters of the head, without tied ones."""
        transform = self.transform.parameters(width, embed_width) if self.transform else 0
        return transform + self.bias * vocab_size

    def matrix_flops(self, width: int, vocab_size: int, embed_width: int) -> int:
        """Forward FLOPs per token."""
        return 2 * embed_width * (vocab_size + (width if self.transform else 0))


@configclass
class ClassHead:
    """Scores of classes.

    `of`: "token": of every token (tags; with one class: replaced or not). "span": class 0 of being the start of a span,
    class 1 its end, with a softmax over the tokens of a sequence. "sequence": of whole sequences, from one token.
    """

    classes: int
    of: Literal["token", "span", "sequence"] = "token"
    transform: TransformConfig | None = None
    """For sequences, BERT's pooler."""
    dropout: float = 0.0
    """Dropout rate of the input of the scores in training."""
    init: Init = Normal(0.02)
    softcap: float | None = None
    """As in `HeadConfig`."""
    bias: bool = True
    token: Literal["first", "last"] = "first"
    """The token from which a whole sequence is scored: the first (BERT), or the last (XLNet, which pads on the
    left)."""

    def __post_init__(self):
        check_positive(classes=self.classes)
        check_one_of("of", self.of, ("token", "span", "sequence"))
        check_one_of("token", self.token, ("first", "last"))
        check(
            self.of != "span" or self.classes == 2, f"classes is {self.classes}: a span head requires 2, start and end"
        )
        check_fraction(dropout=self.dropout)
        check_positive_if_given(softcap=self.softcap)
        _check_no_width(self.transform)

    def parameters(self, width: int, vocab_size: int, embed_width: int) -> int:
        """Number of parameters of the head, without tied ones."""
        transform = self.transform.parameters(width, width) if self.transform else 0
        return transform + (width + self.bias) * self.classes

    def matrix_flops(self, width: int, vocab_size: int, embed_width: int) -> int:
        """Forward FLOPs per token; 0 for the scores of whole sequences, which are not counted."""
        return 0 if self.of == "sequence" else 2 * width * (self.classes + (width if self.transform else 0))


def _check_no_width(transform: TransformConfig | None) -> None:
    width = transform and transform.width
    check(width is None, f"transform.width is {width}: only HeadConfig supports another width; set it to None")


AnyHead = HeadConfig | ScaledHead | TiedHead | ClassHead


class Head(nn.Module):
    """x [B, T, D] -> float32 scores [B, T, V] or [B, T, C]; [B, 1, C] for whole sequences."""

    config: AnyHead
    width: int
    vocab_size: int
    embed_width: int
    precision: Precision

    def setup(self):
        config = self.config
        out = self.embed_width if isinstance(config, TiedHead) else self.width
        if config.transform is not None:
            out = config.transform.width or out
            self.transform = Transform(config.transform, self.width, out, self.precision)
        if isinstance(config, TiedHead):
            if config.bias:
                init = annotated(nn.initializers.zeros_init(), (axes.VOCAB,), Role.BIAS)
                self.bias_V = self.param("bias", init, (self.vocab_size,), self.precision.param_dtype)
            return
        if isinstance(config, ClassHead):
            self.drop = nn.Dropout(config.dropout)
            scores, word, bias_init = config.classes, axes.CLASSES, Zero()
        else:
            scores, word, bias_init = self.vocab_size, axes.VOCAB, config.bias_init
        shape, logical_axes = (out, scores), (axes.EMBED, word)
        self.scores = LinearLayer(
            "BTD,DV->BTV", shape, logical_axes, config.init, self.precision, config.bias, bias_init, role=Role.READOUT
        )
        # Its kernel and bias are at the level of `transform` in the parameter tree, not one level below.
        nn.share_scope(self, self.scores)

    def __call__(self, x_BTD: jax.Array, attend: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """`attend`: x [B, T, E] -> its products with the embedding table [B, T, V]."""
        config = self.config
        if isinstance(config, ClassHead) and config.of == "sequence":
            x_BTD = x_BTD[:, :1] if config.token == "first" else x_BTD[:, -1:]
        if config.transform is not None:
            x_BTD = self.transform(x_BTD)
        if isinstance(config, ClassHead):
            x_BTD = self.drop(x_BTD, deterministic=not self.has_rng("dropout"))
        if isinstance(config, ScaledHead):
            x_BTD = x_BTD * config.scale
        scores_BTV = self._tied(config, x_BTD, attend) if isinstance(config, TiedHead) else self.scores(x_BTD)
        # float32 from here on: the cap and the softmax of the loss need the digits that the compute dtype may lack.
        scores_BTV = scores_BTV.astype(jnp.float32)
        return scores_BTV if config.softcap is None else config.softcap * jnp.tanh(scores_BTV / config.softcap)

    def _tied(self, config: TiedHead, x_BTE: jax.Array, attend: Callable[[jax.Array], jax.Array]) -> jax.Array:
        scores_BTV = attend(x_BTE if config.scale == 1 else x_BTE * config.scale)
        if not config.bias:
            return scores_BTV
        return scores_BTV + broadcast(self.bias_V, scores_BTV.shape, scores_BTV.dtype)


class Transform(nn.Module):
    """x [B, T, D] -> [B, T, E]."""

    config: TransformConfig
    width: int
    out: int
    precision: Precision

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        config = self.config
        shape, logical_axes = (self.width, self.out), (axes.EMBED, axes.MLP)
        x_BTE = LinearLayer("BTD,DE->BTE", shape, logical_axes, config.init, self.precision, config.bias, name="dense")(
            x_BTD
        )
        if config.activation is not None:
            x_BTE = ACTIVATIONS[config.activation](x_BTE)
        return config.norm.build(self.precision, "norm")(x_BTE) if config.norm else x_BTE
