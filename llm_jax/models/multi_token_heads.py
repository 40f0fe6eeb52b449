"""Multi-token prediction: modules beside a decoder that predict the tokens after the next one.

They are trained with the decoder and share its embedding and its head. Generation and the ordinary forward pass do not
run them.

Legend: B batch, T length, D model width, E as D.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_positive, given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import Init, Normal
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.norms import Norm, RMSNormConfig
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.outputs import Output
from llm_jax.models.stack import Aux, Execution, Segment, scanned
from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain


@configclass
class MultiTokenHeads(abc.ABC):
    """Modules that predict `tokens` tokens from one position, the next one by the decoder itself. To add another form,
    derive a configclass from it."""

    tokens: int = 2
    """Number n of tokens that are predicted. There are n - 1 modules, for the tokens after the next one."""

    reads_trunk: ClassVar[bool] = False
    """Whether the modules read `Output.trunk_BTD`."""
    reads_tokens: ClassVar[bool] = False
    """Whether each module reads the embedding of a token."""

    def __post_init__(self):
        check_positive(tokens=self.tokens)

    def check(self, segments: tuple[Segment, ...]) -> None:
        """
        Raises:
          ValueError: if a stack of these segments cannot have the modules.
        """
        return

    @abc.abstractmethod
    def segment(self, segments: tuple[Segment, ...]) -> Segment:
        """The blocks of each module beside a stack of these segments."""

    @abc.abstractmethod
    def build(self, segment: Segment, width: int, precision: Precision, execution: Execution) -> nn.Module:
        """The module (output, context, embedded, normed) -> (one hidden state [B, T, D] for each token after the next,
        `Aux` by the path in its parameters).

        Its arguments are the `Output` of the decoder; the `Context` of its layers; the function from token ids [B, T]
        to the input [B, T, D] of the decoder's first block; and the decoder's final norm.

        Args:
          segment: what `segment` returned.
          execution: remat policy, one for all, and unrolling.
        """

    def parameters(self, segments: tuple[Segment, ...], width: int) -> int:
        """Number of parameters of all modules."""
        segment = self.segment(segments)
        copies = 1 if segment.shared else segment.repeats
        return (self.tokens - 1) * copies * sum(block.parameters(width) for block in segment.blocks)

    def forward_flops(self, segments: tuple[Segment, ...], width: int, length: int) -> float:
        """FLOPs of all modules per token of a sequence of `length` tokens, without the head."""
        segment = self.segment(segments)
        return (self.tokens - 1) * segment.repeats * sum(block.forward_flops(width, length) for block in segment.blocks)


@configclass
class ParallelHeads(MultiTokenHeads):
    """Independent heads on one trunk (Gloeckle et al. 2024, arXiv:2404.19737, 2).

    The last segment of the stack is the head of the next token, and all segments before it are the trunk. Every other
    token has a copy of the last segment with its own parameters, which reads the trunk; all share the final norm and
    the unembedding (github.com/facebookresearch/multi-token-prediction is the paper's code). The paper's heads are one
    block each: a last segment of one block, repeated once.
    """

    reads_trunk = True

    def check(self, segments: tuple[Segment, ...]) -> None:
        check(
            len(segments) > 1,
            "the model has one segment and multi_token is ParallelHeads: the last segment is the head of the next "
            "token, and those before it the trunk; set segments to the trunk and a segment for the head",
        )

    def segment(self, segments: tuple[Segment, ...]) -> Segment:
        return segments[-1]

    def build(self, segment: Segment, width: int, precision: Precision, execution: Execution) -> "ParallelModules":
        return ParallelModules(self, segment, width, precision, execution)


@configclass
class ChainedHeads(MultiTokenHeads):
    """The chain of DeepSeek-V3 (DeepSeek-AI 2024, arXiv:2412.19437, 2.2): module k of position t reads the hidden state
    of module k - 1 (of the decoder for k = 1) and the embedding of token t + k, each after a norm (eq. 21), and
    predicts token t + k + 1.

    Its block is like the last one of the stack (eq. 22). As in the published weights, each module has a final norm of
    its own, and module 1 reads the decoder's hidden states after its final norm. Embedding and head are shared.
    """

    norm: Norm = RMSNormConfig()
    """Norm of hidden state and embedding, and of the output."""
    init: Init = Normal(0.02)
    """Initialiser of the projection from both to the model width."""

    reads_tokens = True

    def segment(self, segments: tuple[Segment, ...]) -> Segment:
        return Segment(segments[-1].blocks[-1:], 1)

    def build(self, segment: Segment, width: int, precision: Precision, execution: Execution) -> "ChainedModules":
        return ChainedModules(self, segment, width, precision, execution)

    def parameters(self, segments: tuple[Segment, ...], width: int) -> int:
        joint = 3 * self.norm.parameters(width) + 2 * width * width
        return super().parameters(segments, width) + (self.tokens - 1) * joint

    def forward_flops(self, segments: tuple[Segment, ...], width: int, length: int) -> float:
        return super().forward_flops(segments, width, length) + (self.tokens - 1) * 4 * width * width


Embedded = Callable[[jax.Array], jax.Array]
"""Token ids [B, T] -> [B, T, D]."""
Normed = Callable[[jax.Array], jax.Array]
"""[B, T, D] -> [B, T, D]."""


class ParallelModules(nn.Module):
    """The modules of `ParallelHeads`."""

    config: ParallelHeads
    segment: Segment
    width: int
    precision: Precision
    execution: Execution

    @nn.compact
    def __call__(
        self, output: Output, context: Context, embedded: Embedded, normed: Normed
    ) -> tuple[tuple[jax.Array, ...], Aux]:
        trunk_BTD = given(output.trunk_BTD, "output.trunk_BTD is None: pass the output of a call without a KV cache")
        hidden, aux = [], {}
        trunk_BTD = given(output.trunk_BTD, "the output has no trunk: call multi_token_hidden")
        for token in range(2, self.config.tokens + 1):
            x_BTD, found = _blocks(self, f"token_{token}", trunk_BTD, context)
            hidden.append(normed(x_BTD))
            aux |= found
        return tuple(hidden), aux


class ChainedModules(nn.Module):
    """The modules of `ChainedHeads`."""

    config: ChainedHeads
    segment: Segment
    width: int
    precision: Precision
    execution: Execution

    @nn.compact
    def __call__(
        self, output: Output, context: Context, embedded: Embedded, normed: Normed
    ) -> tuple[tuple[jax.Array, ...], Aux]:
        tokens_BT = given(
            context.tokens_BT, "ChainedHeads read the next tokens, and the inputs have features only: pass tokens_BT"
        )
        x_BTD, hidden, aux = output.hidden_BTD, [], {}
        for token in range(2, self.config.tokens + 1):
            name, ids_BT = f"token_{token}", following(tokens_BT, token - 1)
            x_BTD = self._joined(name, x_BTD, embedded(ids_BT))
            read = dataclasses.replace(context, tokens_BT=ids_BT, queries=_read(context.queries, token - 1))
            x_BTD, found = _blocks(self, name, x_BTD, read)
            hidden.append(self._norm(f"{name}_final_norm")(x_BTD))
            aux |= found
        return tuple(hidden), aux

    def _joined(self, name: str, x_BTD: jax.Array, embedded_BTD: jax.Array) -> jax.Array:
        """The input of a module's blocks, from the hidden states before it and the embeddings of its tokens."""
        both = self._norm(f"{name}_hidden_norm")(x_BTD), self._norm(f"{name}_embedding_norm")(embedded_BTD)
        shape, init = (2 * self.width, self.width), self.config.init
        project = LinearLayer("BTD,DE->BTE", shape, (axes.EMBED, axes.MLP), init, self.precision, name=f"{name}_joint")
        return constrain(project(jnp.concatenate(both, axis=-1)), axes.BATCH, axes.STREAM, axes.WIDTH)

    def _norm(self, name: str) -> nn.Module:
        return self.config.norm.build(self.precision, name)


def following(x_BT: jax.Array, places: int) -> jax.Array:
    """For every token the value of the one `places` after it, and 0 after the end of the sequence."""
    return jnp.pad(x_BT[:, places:], ((0, 0), (0, min(places, x_BT.shape[1]))))


def _read(sequence: SequenceInfo, places: int) -> SequenceInfo:
    """`sequence`, in which tokens are padding if their document has no token `places` after them."""
    real_BT = sequence.real_BT
    ids_BT = jnp.ones_like(sequence.positions_BT) if sequence.segment_ids_BT is None else sequence.segment_ids_BT
    same_BT = following(ids_BT, places) == ids_BT
    return dataclasses.replace(sequence, segment_ids_BT=jnp.where(same_BT & real_BT, ids_BT, 0))


def _blocks(module: Any, name: str, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, Aux]:
    """x through the blocks of one module, and their routing statistics."""
    segment, execution = module.segment, module.execution
    turns = execution.turns(segment.repeats)
    group = scanned(segment, execution.remat_of(0), turns, module.is_initializing())
    x_BTD, (_, aux) = group(segment.blocks, module.width, module.precision, name=name)(x_BTD, context, None)
    return x_BTD, {f"{name}/{block}": one for block, one in aux.items()}
