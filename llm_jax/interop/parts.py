"""The tensors of parts that families share: what a family file says of a norm, a linear layer, a block's place.

A family names its tensors with the number of the layer put in; the letters are those of mapping.py.
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
class Place:
    """One layer: where its parameters lie in our tree, and the sizes of its tensors."""

    number: int
    """Counted from 0 through the whole stack."""
    path: str
    layer: int | None
    """Place along the axis of layers of its leaves; None where they have none, as all repeats share them."""
    block: BlockConfig
    sizes: dict[str, int]

    def with_sizes(self, **sizes: int) -> "Place":
        """The same with the sizes of letters that its mixer alone has."""
        return dataclasses.replace(self, sizes=self.sizes | sizes)

    def leaf(self, name: str, layout: str, share: int = 1, neighbours: int = 0, expert: int | None = None) -> Leaf:
        """A leaf of this layer, such as 'mixer/query/kernel', or one expert's part of it."""
        return Leaf(f"{self.path}/{name}", layout, self.layer, share, expert, neighbours)


def places(config: TransformerConfig) -> Iterator[Place]:
    """The layers of a stack in order; of those that share their weights the first."""
    number = 0
    for segment_number, segment in enumerate(config.segments):
        for repeat in range(1 if segment.shared else segment.repeats):
            for block_number, block in enumerate(segment.blocks):
                path = f"stack/segment_{segment_number}/block_{block_number}"
                layer = None if segment.shared else repeat
                yield Place(number, path, layer, block, _sizes(config, block))
                number += 1


def first(config: TransformerConfig) -> BlockConfig:
    """The first block, for what all blocks of a family have alike."""
    return config.segments[0].blocks[0]


def mixer_of(block: BlockConfig, kind: type[Kind]) -> Kind:
    """The mixer of a block. ValueError where it is of another type."""
    if not isinstance(block.mixer, kind):
        raise ValueError(f"a block has the mixer {type(block.mixer).__name__}, and this family has {kind.__name__}")
    return block.mixer


def attention_of(block: BlockConfig) -> AttentionConfig:
    """The attention of a block. ValueError where it has another mixer."""
    return mixer_of(block, AttentionConfig)


def cross_of(block: BlockConfig) -> CrossAttentionConfig:
    """What reads the encoder in a block. ValueError where nothing does."""
    return given(block.cross, "a block has no cross attention, and this family has")


def window_of(mixer: AttentionConfig) -> int | None:
    """Tokens that each sees; None for all before it. ValueError where tokens see later ones."""
    if not isinstance(mixer.mask, Causal):
        raise ValueError(f"attention has the mask {type(mixer.mask).__name__}, and this family has Causal")
    return mixer.mask.window


def windows(config: TransformerConfig) -> list[int | None]:
    """`window_of` all layers."""
    return [window_of(attention_of(place.block)) for place in places(config)]


def rope_of(mixer: AttentionConfig | LatentAttentionConfig) -> RoPEConfig:
    """Rotary positions of attention. ValueError where it has none, or others."""
    if not isinstance(mixer.position, RoPEConfig):
        raise ValueError(f"attention has the position {type(mixer.position).__name__}, and this family has RoPEConfig")
    return mixer.position


def rotated(mixer: AttentionConfig) -> int:
    """Features of each head that are rotated."""
    return 0 if mixer.position is None else rope_of(mixer).features or mixer.head_dim


def dense_of(block: BlockConfig) -> DenseConfig:
    """The ffn of a block. ValueError where it has none or experts."""
    if not isinstance(block.ffn, DenseConfig):
        raise ValueError(f"a block has the ffn {type(block.ffn).__name__}, and this family has one without experts")
    return block.ffn


def experts_of(block: BlockConfig) -> MoEConfig:
    """The experts of a block. ValueError where it has none."""
    if not isinstance(block.ffn, MoEConfig):
        raise ValueError(f"a block has the ffn {type(block.ffn).__name__}, and this family has experts there")
    return block.ffn


def router_of(layer: MoEConfig) -> SoftmaxConfig | SigmoidConfig:
    """The router of a layer of experts. ValueError where tokens do not choose by scores of their own."""
    if not isinstance(layer.router, SoftmaxConfig | SigmoidConfig):
        raise ValueError(f"experts have the router {type(layer.router).__name__}, and this family has none such")
    return layer.router


def norm_of(block: BlockConfig) -> LayerNormConfig | OffsetLayerNormConfig | RMSNormConfig:
    """The norms of a block. ValueError where it has none, or others."""
    if not isinstance(block.norm, LayerNormConfig | OffsetLayerNormConfig | RMSNormConfig):
        raise ValueError(f"a block has the norm {type(block.norm).__name__}, and this family has LayerNorm or RMSNorm")
    return block.norm


def head_of(config: TransformerConfig) -> AnyHead:
    """The head of a model. ValueError where it has none."""
    return given(config.head, "the model has no head, and this family has")


def learned_of(config: TransformerConfig) -> LearnedPositionsConfig:
    """The table of positions. ValueError where the model has none."""
    position = config.embed.position
    if not isinstance(position, LearnedPositionsConfig):
        raise ValueError(f"embed.position is {position}, and this family has a learned table of positions")
    return position


def embedding(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The table of token vectors."""
    sizes = {"v": vocabulary(config), "d": config.embed.table_width(config.width)}
    yield Tensor(name, "v d", (Leaf("embed/table", "v d"),), sizes)


def learned_positions(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The table of positions."""
    sizes = {"t": config.max_length + learned_of(config).offset, "d": config.embed.sum_width(config.width)}
    yield Tensor(name, "t d", (Leaf("embed/positions/table", "t d"),), sizes)


def head(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The matrix of the scores, where it is not the embedding's, and their bias."""
    sizes = {"v": vocabulary(config), "d": config.width}
    if isinstance(config.head, HeadConfig):
        sizes["d"] = config.head.read_width(config.width)
        yield Tensor(f"{name}.weight", "v d", (Leaf("head/kernel", "d v"),), sizes)
    if head_of(config).bias:
        yield Tensor(f"{name}.bias", "v", (Leaf("head/bias", "v"),), sizes)


def logits_scale(config: TransformerConfig) -> float:
    """The factor of the logits of a tied head. ValueError for another head."""
    if not isinstance(config.head, TiedHead):
        raise ValueError(f"head is {type(config.head).__name__}, and this family has a TiedHead")
    return config.head.scale


def types(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The table of token types, where there are any."""
    if not config.embed.types:
        return
    sizes = {"r": config.embed.types, "d": config.embed.sum_width(config.width)}
    yield Tensor(name, "r d", (Leaf("embed/types", "r d"),), sizes)


def widening(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The matrix from a narrow embedding to the model's width, where there is one."""
    if config.embed.factorized:
        yield from dense(name, "embed/widen", config.embed.factorized.width, config.width, config.embed.factorized.bias)


def transform(config: TransformerConfig, linear: str, layer_norm: str = "") -> Iterator[Tensor]:
    """What a head does before its scores, where it does."""
    if config.head is None or config.head.transform is None:
        return
    transform, tied = config.head.transform, isinstance(config.head, TiedHead)
    out = config.embed.table_width(config.width) if tied else transform.width or config.width
    yield from dense(linear, "head/transform/dense", config.width, out, transform.bias)
    if transform.norm:
        yield from norm(layer_norm, transform.norm, "head/transform/norm", out)


def dense(name: str, path: str, inputs: int, outputs: int, bias: bool) -> Iterator[Tensor]:
    """A linear layer that belongs to no block, [output, input]."""
    sizes = {"d": inputs, "e": outputs}
    yield Tensor(f"{name}.weight", "e d", (Leaf(f"{path}/kernel", "d e"),), sizes)
    if bias:
        yield Tensor(f"{name}.bias", "e", (Leaf(f"{path}/bias", "e"),), sizes)


def norm(name: str, config: Norm | None, path: str | Leaf, size: int, heads: int | None = None) -> Iterator[Tensor]:
    """Scale and bias of a norm over `size` features. ValueError where the model has none.

    Args:
      path: of the norm in our tree, or the leaf of its place in a layer.
      heads: how many heads have vectors of their own; None: there is one of each.
    """
    config = given(config, f"the model has no norm for {name}, and this family has")
    at = path if isinstance(path, Leaf) else Leaf(path, "d")
    vectors = {} if isinstance(config, PlainLayerNormConfig) else {"weight": "scale"}
    if isinstance(config, OffsetLayerNormConfig) or (isinstance(config, LayerNormConfig) and config.bias):
        vectors["bias"] = "bias"
    for theirs, ours in vectors.items():
        layout, sizes = ("d", {"d": size}) if heads is None else ("n h", {"n": heads, "h": size})
        leaf = dataclasses.replace(at, path=f"{at.path}/{ours}", layout=layout)
        yield Tensor(f"{name}.{theirs}", layout, (leaf,), sizes)


def layer_norm(place: Place, name: str, ours: str) -> Iterator[Tensor]:
    """A norm of a block."""
    yield from norm(name, place.block.norm, place.leaf(ours, "d"), place.sizes["d"])


def linear(place: Place, name: str, layout: str, inputs: str, leaves: tuple[Leaf, ...], bias: bool) -> Iterator[Tensor]:
    """Kernel and bias of a linear layer, or of several fused into one.

    Args:
      layout: axes of the weight.
      inputs: letters of the axes that the product sums over, which a bias has not.
      leaves: of the layers, each with the axes of its kernel.
    """
    kernels = tuple(dataclasses.replace(leaf, path=f"{leaf.path}/kernel") for leaf in leaves)
    yield Tensor(f"{name}.weight", layout, kernels, place.sizes)
    if bias:
        biases = tuple(
            dataclasses.replace(leaf, path=f"{leaf.path}/bias", layout=_without(leaf.layout, inputs)) for leaf in leaves
        )
        yield Tensor(f"{name}.bias", _without(layout, inputs), biases, place.sizes)


def under(side: str, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors of one side of an encoder-decoder: their leaves lie under its name."""
    for tensor in tensors:
        leaves = tuple(dataclasses.replace(leaf, path=f"{side}/{leaf.path}") for leaf in tensor.leaves)
        yield dataclasses.replace(tensor, leaves=leaves)


def relative_bias(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    """The table of biases by relative place that the layers share."""
    bias, heads = given(config.relative_bias, "the model has no biases by relative place, and this family has")
    yield Tensor(name, "r n", (Leaf("relative_bias/table", "r n"),), {"r": bias.buckets, "n": heads})


def attention(place: Place, names: Iterable[str], neighbours: int = 0, branch: str = "mixer") -> Iterator[Tensor]:
    """Four linear layers, [output, input] each, of the block's mixer or of its cross attention: of queries, keys,
    values and the output."""
    query, key, value, out = names
    mixer = getattr(place.block, branch)
    for name, heads, ours, turned in (
        (query, "n", "query", True),
        (key, "k", "key", True),
        (value, "k", "value", False),
    ):
        leaf = place.leaf(f"{branch}/{ours}", f"d {heads} h", neighbours=neighbours if turned else 0)
        yield from linear(place, name, f"({heads} h) d", "d", (leaf,), mixer.bias)
    yield from attention_out(place, out, branch=branch)


def fused_attention(
    place: Place,
    name: str,
    layout: str,
    leaf_layout: str,
    shares: tuple[int, int, int] = (1, 1, 1),
    order: tuple[str, str, str] = ("query", "key", "value"),
    neighbours: int = 0,
) -> Iterator[Tensor]:
    """Queries, keys and values in one linear layer, cut along s into `shares` in this order.

    Args:
      neighbours: as of `Leaf`, of queries and keys.
    """
    leaves = tuple(
        place.leaf(f"mixer/{ours}", leaf_layout, share, 0 if ours == "value" else neighbours)
        for ours, share in zip(order, shares, strict=True)
    )
    yield from linear(place, name, layout, "d", leaves, attention_of(place.block).bias)


def query_key_norms(place: Place, query: str, key: str, neighbours: int = 0) -> Iterator[Tensor]:
    """The norms of queries and keys; `neighbours` as of `Leaf`, where each head has vectors of its own."""
    mixer = attention_of(place.block)
    norms = given(mixer.qk_norm, "attention has no norms of queries and keys, and this family has")
    for name, ours, heads in ((query, "query_norm", mixer.heads), (key, "key_norm", mixer.kv_heads)):
        if norms.over == "each head":
            leaf = place.leaf(f"mixer/{ours}", "n h", neighbours=neighbours)
            yield from norm(name, norms.norm, leaf, mixer.head_dim, heads)
        else:
            size = mixer.head_dim * (1 if norms.over == "head" else heads)
            yield from norm(name, norms.norm, place.leaf(f"mixer/{ours}", "d"), size)


def attention_out(place: Place, name: str, layout: str = "d (n h)", branch: str = "mixer") -> Iterator[Tensor]:
    """The output projection."""
    leaf = place.leaf(f"{branch}/out", "n h d")
    yield from linear(place, name, layout, "n h", (leaf,), getattr(place.block, branch).biased_output)


def ffn(
    place: Place,
    into: dict[str, str],
    down: str,
    transposed: bool = False,
    path: str = "ffn",
    config: DenseConfig | None = None,
    expert: int | None = None,
) -> Iterator[Tensor]:
    """The linear layers of an ffn.

    Args:
      into: {our name: theirs} of those that read the stream: 'up', and 'gate' where it is gated.
      down: name of the one that writes to it.
      transposed: whether their weights are [input, output].
      path: of the ffn in its block; it may be a part of one with experts.
      config: what lies there; None: the block's ffn.
      expert: its number among those that lie there.
    """
    config = dense_of(place.block) if config is None else config
    place = place.with_sizes(f=config.hidden)
    for ours, theirs in into.items():
        layout = "d f" if transposed else "f d"
        leaf = place.leaf(f"{path}/{ours}", "d f", expert=expert)
        yield from linear(place, theirs, layout, "d", (leaf,), config.bias)
    layout, leaf = "f d" if transposed else "d f", place.leaf(f"{path}/down", "f d", expert=expert)
    yield from linear(place, down, layout, "f", (leaf,), config.bias)


def llama_ffn(place: Place, name: str, **where: Any) -> Iterator[Tensor]:
    """A gated ffn under LLaMA's names; `where` as of `ffn`."""
    into = {"gate": f"{name}.gate_proj", "up": f"{name}.up_proj"}
    yield from ffn(place, into, f"{name}.down_proj", **where)


def plain_ffn(config: TransformerConfig) -> DenseConfig:
    """That of the first layer that has one without experts; where all have experts, one of these."""
    found = [place.block.ffn for place in places(config)]
    return next((one for one in found if isinstance(one, DenseConfig)), None) or expert_layer(config).expert


def expert_layer(config: TransformerConfig) -> MoEConfig:
    """The experts of the first layer that has such. ValueError where none has."""
    found = [place.block.ffn for place in places(config) if isinstance(place.block.ffn, MoEConfig)]
    check(bool(found), "the model has no experts, and this family has")
    return found[0]


def mixed_layers(config: TransformerConfig) -> list[int]:
    """Numbers of the layers that have experts."""
    return [place.number for place in places(config) if isinstance(place.block.ffn, MoEConfig)]


def vocabulary(config: TransformerConfig) -> int:
    """Tokens of the vocabulary. ValueError for a model without one."""
    return given(config.vocab_size, "the model has no vocabulary, and this family has")


def _sizes(config: TransformerConfig, block: BlockConfig) -> dict[str, int]:
    """Of the letters that attention and an ffn have; the family of another mixer adds its own."""
    mixer, sizes = block.mixer, {"d": config.width}
    if isinstance(mixer, AttentionConfig):
        groups = mixer.heads // mixer.kv_heads
        sizes |= {"n": mixer.heads, "k": mixer.kv_heads, "g": groups, "h": mixer.head_dim}
    if isinstance(block.ffn, MoEConfig):
        return sizes | {"f": block.ffn.expert.hidden, "x": block.ffn.count}
    return sizes | ({"f": block.ffn.hidden} if isinstance(block.ffn, DenseConfig) else {})


def _without(layout: str, letters: str) -> str:
    """The layout without the axes of these letters."""
    left = re.sub(r"\(\s*\)", "", re.sub(f"[{letters.replace(' ', '')}]", "", layout))
    return re.sub(r"\s+", " ", left).replace("( ", "(").replace(" )", ")").strip()
