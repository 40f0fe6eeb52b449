"""Tensors of the layers that families share: norms, linear layers, attention, feed-forward layers, heads.

They take the names of the published tensors and yield a `Tensor` for each. Axis letters are those of mapping.py.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from llm_jax.core.checks import check, given
from llm_jax.interop.mapping import Leaf, Tensor
from llm_jax.layers.attention.attention import AttentionConfig, CrossAttentionConfig
from llm_jax.layers.attention.latent import LatentAttentionConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.ffn.mlp import DenseConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.norms import LayerNormConfig, Norm, OffsetLayerNormConfig, PlainLayerNormConfig, RMSNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.heads import AnyHead, HeadConfig, TiedHead

Kind = TypeVar("Kind", bound=Mixer)


@dataclasses.dataclass(frozen=True)
class LayerRef:
    """One layer of a stack: the path of its parameters and the sizes of its tensors' axes."""

    number: int
    """Number of the layer in the stack, from 0."""
    path: str
    """Path of its block in the parameter tree."""
    repeat: int | None
    """Index along the leading axis of the block's leaves; None if all repeats of the segment share their parameters."""
    block: BlockConfig
    sizes: dict[str, int]
    """Size of each axis, by its letter."""

    def with_sizes(self, **sizes: int) -> "LayerRef":
        """The layer with sizes of further letters, those of its mixer."""
        return dataclasses.replace(self, sizes=self.sizes | sizes)

    def leaf(self, name: str, layout: str, share: int = 1, neighbours: int = 0, expert: int | None = None) -> Leaf:
        """The leaf `name` of this layer, such as 'mixer/query/kernel', or its slice of one expert."""
        return Leaf(f"{self.path}/{name}", layout, self.repeat, share, expert, neighbours)


def layers(config: TransformerConfig) -> Iterator[LayerRef]:
    """The layers of a stack in order. Layers that share parameters are yielded once."""
    number = 0
    for segment_number, segment in enumerate(config.segments):
        for repeat in range(1 if segment.shared else segment.repeats):
            for block_number, block in enumerate(segment.blocks):
                path = f"stack/segment_{segment_number}/block_{block_number}"
                yield LayerRef(number, path, None if segment.shared else repeat, block, _sizes(config, block))
                number += 1


def first(config: TransformerConfig) -> BlockConfig:
    """The first block of a stack, for values that all blocks of a family share."""
    return config.segments[0].blocks[0]


def mixer_of(block: BlockConfig, kind: type[Kind]) -> Kind:
    """The mixer of a block. ValueError if it is not a `kind`."""
    if not isinstance(block.mixer, kind):
        raise ValueError(f"mixer is {type(block.mixer).__name__}: this family requires {kind.__name__}")
    return block.mixer


def attention_of(block: BlockConfig) -> AttentionConfig:
    """The attention of a block. ValueError if its mixer is of another type."""
    return mixer_of(block, AttentionConfig)


def cross_of(block: BlockConfig) -> CrossAttentionConfig:
    """The cross-attention of a block. ValueError if it has none."""
    return given(block.cross, "block.cross is None: this family requires cross-attention")


def window_of(mixer: AttentionConfig) -> int | None:
    """Attention window in tokens; None for full causal attention. ValueError if the mask is not causal."""
    if not isinstance(mixer.mask, Causal):
        raise ValueError(f"mask is {type(mixer.mask).__name__}: this family requires Causal")
    return mixer.mask.window


def windows(config: TransformerConfig) -> list[int | None]:
    """`window_of` each layer."""
    return [window_of(attention_of(layer.block)) for layer in layers(config)]


def rope_of(mixer: AttentionConfig | LatentAttentionConfig) -> RoPEConfig:
    """The RoPE of attention. ValueError if its positions are not rotary."""
    if not isinstance(mixer.position, RoPEConfig):
        raise ValueError(f"position is {type(mixer.position).__name__}: this family requires RoPEConfig")
    return mixer.position


def rotated(mixer: AttentionConfig) -> int:
    """Number of rotated features per head; 0 without RoPE."""
    return 0 if mixer.position is None else rope_of(mixer).features or mixer.head_dim


def dense_of(block: BlockConfig) -> DenseConfig:
    """The dense ffn of a block. ValueError if it has none or a mixture of experts."""
    if not isinstance(block.ffn, DenseConfig):
        raise ValueError(f"ffn is {type(block.ffn).__name__}: this family requires a dense one")
    return block.ffn


def experts_of(block: BlockConfig) -> MoEConfig:
    """The MoE layer of a block. ValueError if it has none."""
    if not isinstance(block.ffn, MoEConfig):
        raise ValueError(f"ffn is {type(block.ffn).__name__}: this family requires MoEConfig")
    return block.ffn


def router_of(layer: MoEConfig) -> SoftmaxConfig | SigmoidConfig:
    """The token-choice router of an MoE layer. ValueError for a router of another type."""
    if not isinstance(layer.router, SoftmaxConfig | SigmoidConfig):
        raise ValueError(
            f"router is {type(layer.router).__name__}: this family requires SoftmaxConfig or SigmoidConfig"
        )
    return layer.router


def norm_of(block: BlockConfig) -> LayerNormConfig | OffsetLayerNormConfig | RMSNormConfig:
    """The norm config of a block. ValueError unless it is LayerNorm or RMSNorm."""
    if not isinstance(block.norm, LayerNormConfig | OffsetLayerNormConfig | RMSNormConfig):
        raise ValueError(f"norm is {type(block.norm).__name__}: this family requires LayerNorm or RMSNorm")
    return block.norm


def head_of(config: TransformerConfig) -> AnyHead:
    """The head of a model. ValueError if it has none."""
    return given(config.head, "the model has no head: this family requires one")


def learned_of(config: TransformerConfig) -> LearnedPositionsConfig:
    """The learned positions of a model. ValueError if it has none."""
    position = config.embed.position
    if not isinstance(position, LearnedPositionsConfig):
        raise ValueError(f"embed.position is {position}: this family requires LearnedPositionsConfig")
    return position


def embedding(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The embedding table, [v, d]."""
    sizes = {"v": vocabulary(config), "d": config.embed.table_width(config.width)}
    yield Tensor(name, "v d", (Leaf("embed/table", "v d"),), sizes)


def learned_positions(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The table of learned positions, [t, d]."""
    sizes = {"t": config.max_length + learned_of(config).offset, "d": config.embed.sum_width(config.width)}
    yield Tensor(name, "t d", (Leaf("embed/positions/table", "t d"),), sizes)


def head(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The output projection [v, d], unless it is tied to the embedding, and its bias if there is one."""
    sizes = {"v": vocabulary(config), "d": config.width}
    if isinstance(config.head, HeadConfig):
        sizes["d"] = config.head.read_width(config.width)
        yield Tensor(f"{name}.weight", "v d", (Leaf("head/kernel", "d v"),), sizes)
    if head_of(config).bias:
        yield Tensor(f"{name}.bias", "v", (Leaf("head/bias", "v"),), sizes)


def logits_scale(config: TransformerConfig) -> float:
    """The factor of a tied head's logits. ValueError if the head is not tied."""
    if not isinstance(config.head, TiedHead):
        raise ValueError(f"head is {type(config.head).__name__}: this family requires TiedHead")
    return config.head.scale


def types(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The table of token types, [r, d], if the model has one."""
    if not config.embed.types:
        return
    sizes = {"r": config.embed.types, "d": config.embed.sum_width(config.width)}
    yield Tensor(name, "r d", (Leaf("embed/types", "r d"),), sizes)


def widening(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The projection of a factorized embedding to the model width, if there is one."""
    if config.embed.factorized:
        yield from dense(name, "embed/widen", config.embed.factorized.width, config.width, config.embed.factorized.bias)


def transform(config: TransformerConfig, linear: str, layer_norm: str = "") -> Iterator[Tensor]:
    """The transform of a head before its output projection, if there is one: a dense layer and an optional norm."""
    if config.head is None or config.head.transform is None:
        return
    transform, tied = config.head.transform, isinstance(config.head, TiedHead)
    out = config.embed.table_width(config.width) if tied else transform.width or config.width
    yield from dense(linear, "head/transform/dense", config.width, out, transform.bias)
    if transform.norm:
        yield from norm(layer_norm, transform.norm, "head/transform/norm", out)


def dense(name: str, path: str, inputs: int, outputs: int, bias: bool) -> Iterator[Tensor]:
    """A linear layer outside the blocks, [output, input]."""
    sizes = {"d": inputs, "e": outputs}
    yield Tensor(f"{name}.weight", "e d", (Leaf(f"{path}/kernel", "d e"),), sizes)
    if bias:
        yield Tensor(f"{name}.bias", "e", (Leaf(f"{path}/bias", "e"),), sizes)


def norm(name: str, config: Norm | None, path: str | Leaf, size: int, heads: int | None = None) -> Iterator[Tensor]:
    """Scale and bias of a norm over `size` features. ValueError if the model has no such norm.

    Args:
      path: path of the norm in the parameter tree, or its leaf in a layer.
      heads: number of heads with vectors of their own; None: all share one.
    """
    config = given(config, f"the model has no norm for {name}: this family requires one")
    at = path if isinstance(path, Leaf) else Leaf(path, "d")
    vectors = {} if isinstance(config, PlainLayerNormConfig) else {"weight": "scale"}
    if isinstance(config, OffsetLayerNormConfig) or (isinstance(config, LayerNormConfig) and config.bias):
        vectors["bias"] = "bias"
    for theirs, ours in vectors.items():
        layout, sizes = ("d", {"d": size}) if heads is None else ("n h", {"n": heads, "h": size})
        leaf = dataclasses.replace(at, path=f"{at.path}/{ours}", layout=layout)
        yield Tensor(f"{name}.{theirs}", layout, (leaf,), sizes)


def layer_norm(layer: LayerRef, name: str, ours: str) -> Iterator[Tensor]:
    """A norm of a block."""
    yield from norm(name, layer.block.norm, layer.leaf(ours, "d"), layer.sizes["d"])


def linear(
    layer: LayerRef, name: str, layout: str, inputs: str, leaves: tuple[Leaf, ...], bias: bool
) -> Iterator[Tensor]:
    """Kernel and bias of a linear layer, or of several that the checkpoint fuses into one.

    Args:
      layout: axes of the published weight.
      inputs: letters of the contracted axes, which a bias lacks.
      leaves: one leaf per linear layer, with the axes of its kernel.
    """
    kernels = tuple(dataclasses.replace(leaf, path=f"{leaf.path}/kernel") for leaf in leaves)
    yield Tensor(f"{name}.weight", layout, kernels, layer.sizes)
    if bias:
        biases = tuple(
            dataclasses.replace(leaf, path=f"{leaf.path}/bias", layout=_without(leaf.layout, inputs)) for leaf in leaves
        )
        yield Tensor(f"{name}.bias", _without(layout, inputs), biases, layer.sizes)


def under(side: str, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors of one stack of an encoder-decoder: `side` is the first part of the paths of their leaves."""
    for tensor in tensors:
        leaves = tuple(dataclasses.replace(leaf, path=f"{side}/{leaf.path}") for leaf in tensor.leaves)
        yield dataclasses.replace(tensor, leaves=leaves)


def relative_bias(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The table of relative position biases, shared by the layers, [r, n]."""
    bias, heads = given(config.relative_bias, "relative_bias is None: this family requires one")
    yield Tensor(name, "r n", (Leaf("relative_bias/table", "r n"),), {"r": bias.buckets, "n": heads})


def attention(layer: LayerRef, names: Iterable[str], neighbours: int = 0, branch: str = "mixer") -> Iterator[Tensor]:
    """The query, key, value and output projections, [output, input] each, of the mixer or of cross-attention.

    Args:
      names: names of the four layers, in this order.
      neighbours: as in `Leaf`, for queries and keys.
      branch: 'mixer' or 'cross'.
    """
    query, key, value, out = names
    mixer = getattr(layer.block, branch)
    for name, heads, ours, turned in (
        (query, "n", "query", True),
        (key, "k", "key", True),
        (value, "k", "value", False),
    ):
        leaf = layer.leaf(f"{branch}/{ours}", f"d {heads} h", neighbours=neighbours if turned else 0)
        yield from linear(layer, name, f"({heads} h) d", "d", (leaf,), mixer.bias)
    yield from attention_out(layer, out, branch=branch)


def fused_attention(
    layer: LayerRef,
    name: str,
    layout: str,
    leaf_layout: str,
    shares: tuple[int, int, int] = (1, 1, 1),
    order: tuple[str, str, str] = ("query", "key", "value"),
    neighbours: int = 0,
) -> Iterator[Tensor]:
    """Queries, keys and values in one linear layer, concatenated along axis s.

    Args:
      shares: size of each along s, in the order of `order`.
      neighbours: as in `Leaf`, for queries and keys.
    """
    leaves = tuple(
        layer.leaf(f"mixer/{ours}", leaf_layout, share, 0 if ours == "value" else neighbours)
        for ours, share in zip(order, shares, strict=True)
    )
    yield from linear(layer, name, layout, "d", leaves, attention_of(layer.block).bias)


def query_key_norms(layer: LayerRef, query: str, key: str, neighbours: int = 0) -> Iterator[Tensor]:
    """The QK norms; `neighbours` as in `Leaf`, where each head has a scale of its own."""
    norms = given((mixer := attention_of(layer.block)).qk_norm, "qk_norm is None: this family requires one")
    for name, ours, heads in ((query, "query_norm", mixer.heads), (key, "key_norm", mixer.kv_heads)):
        own = norms.over == "each head"
        leaf = layer.leaf(f"mixer/{ours}", "n h" if own else "d", neighbours=neighbours if own else 0)
        size = mixer.head_dim * (heads if norms.over == "heads" else 1)
        yield from norm(name, norms.norm, leaf, size, heads if own else None)


def attention_out(layer: LayerRef, name: str, layout: str = "d (n h)", branch: str = "mixer") -> Iterator[Tensor]:
    """The output projection of attention."""
    leaf = layer.leaf(f"{branch}/out", "n h d")
    yield from linear(layer, name, layout, "n h", (leaf,), getattr(layer.block, branch).biased_output)


def ffn(
    layer: LayerRef,
    into: dict[str, str],
    down: str,
    transposed: bool = False,
    path: str = "ffn",
    config: DenseConfig | None = None,
    expert: int | None = None,
) -> Iterator[Tensor]:
    """The linear layers of a feed-forward layer.

    Args:
      into: {our name: published name} of the input projections: 'up', and 'gate' if the layer is gated.
      down: published name of the output projection.
      transposed: whether the published weights are [input, output].
      path: path of the layer in its block, such as 'ffn/shared' in an MoE layer.
      config: the layer at `path`; None: the ffn of the block.
      expert: number of the expert, if `path` holds stacked experts.
    """
    config = dense_of(layer.block) if config is None else config
    layer = layer.with_sizes(f=config.hidden)
    for ours, theirs in into.items():
        layout = "d f" if transposed else "f d"
        leaf = layer.leaf(f"{path}/{ours}", "d f", expert=expert)
        yield from linear(layer, theirs, layout, "d", (leaf,), config.bias)
    layout, leaf = "f d" if transposed else "d f", layer.leaf(f"{path}/down", "f d", expert=expert)
    yield from linear(layer, down, layout, "f", (leaf,), config.bias)


def llama_ffn(layer: LayerRef, name: str, **where: Any) -> Iterator[Tensor]:
    """A gated feed-forward layer with LLaMA's names; `where` are arguments of `ffn`."""
    into = {"gate": f"{name}.gate_proj", "up": f"{name}.up_proj"}
    yield from ffn(layer, into, f"{name}.down_proj", **where)


def plain_ffn(config: TransformerConfig) -> DenseConfig:
    """The first dense ffn of the model; if all layers are MoE layers, the first layer's expert."""
    found = [layer.block.ffn for layer in layers(config)]
    return next((one for one in found if isinstance(one, DenseConfig)), None) or expert_layer(config).expert


def expert_layer(config: TransformerConfig) -> MoEConfig:
    """The first MoE layer of the model. ValueError if it has none."""
    found = [layer.block.ffn for layer in layers(config) if isinstance(layer.block.ffn, MoEConfig)]
    check(bool(found), "the model has no MoE layer: this family requires one")
    return found[0]


def mixed_layers(config: TransformerConfig) -> list[int]:
    """Numbers of the MoE layers."""
    return [layer.number for layer in layers(config) if isinstance(layer.block.ffn, MoEConfig)]


def vocabulary(config: TransformerConfig) -> int:
    """Vocabulary size. ValueError for a model without a vocabulary."""
    return given(config.vocab_size, "vocab_size is None: this family requires a vocabulary")


def _sizes(config: TransformerConfig, block: BlockConfig) -> dict[str, int]:
    """Sizes of the letters of attention and ffn. Families with other mixers add theirs with `with_sizes`."""
    mixer, sizes = block.mixer, {"d": config.width}
    if isinstance(mixer, AttentionConfig):
        groups = mixer.heads // mixer.kv_heads
        sizes |= {"n": mixer.heads, "k": mixer.kv_heads, "g": groups, "h": mixer.head_dim}
    if isinstance(block.ffn, MoEConfig):
        return sizes | {"f": block.ffn.expert.hidden, "x": block.ffn.count}
    return sizes | ({"f": block.ffn.hidden} if isinstance(block.ffn, DenseConfig) else {})


def _without(layout: str, letters: str) -> str:
    """The layout without these letters."""
    left = re.sub(r"\(\s*\)", "", re.sub(f"[{letters.replace(' ', '')}]", "", layout))
    return re.sub(r"\s+", " ", left).replace("( ", "(").replace(" )", ")").strip()
