"""Checkpoints of DeepSeek-V2, DeepSeek-V3 and Youtu-LLM, which has no MoE layers.

Legend, in addition to that of mapping.py: q rank of queries, r rank of keys and values, w head size of values.
"""

from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.checks import check, given
from llm_jax.interop import expert_tensors, parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Only, Pair, Table, defaults
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope_options import longest, read_rope, write_rope, written_length
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.layers.attention.latent import LatentAttentionConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.groups import GroupLimit
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.layers.ffn.routing import Router
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.deepseek import INIT, deepseek
from llm_jax.models.families.deepseek import experts as experts_of


def _mixer(config: TransformerConfig) -> LatentAttentionConfig:
    return parts.mixer_of(parts.first(config), LatentAttentionConfig)


def _held(name: str) -> Callable[[TransformerConfig], Any]:
    return lambda config: getattr(_mixer(config), name)


def _read_rope(settings: Settings, found: Arguments) -> Arguments:
    length = settings.need("max_position_embeddings")
    rope = read_rope(settings, found["rotary_dim"], length)
    return {"rope": rope, "max_length": longest(rope, length), "sharpening": _sharpening(settings)}


def _sharpening(settings: Settings) -> float:
    scaling = settings.nested("rope_scaling", "rope_parameters")
    if scaling.given("rope_type", "type", default="default") == "default":
        return 0.0
    return float(scaling.given("mscale_all_dim", default=0.0))


def _write_rope(config: TransformerConfig) -> dict[str, Any]:
    mixer = _mixer(config)
    length = written_length(mixer.position, config.max_length)
    return _write_sharpened(write_rope(mixer.position), mixer.sharpening) | {"max_position_embeddings": length}


def _write_sharpened(rope: dict[str, Any], sharpening: float) -> dict[str, Any]:
    """The options of `write_rope` with the sharpening of attention scores."""
    if not sharpening:
        return rope
    return rope | {name: rope[name] | {"mscale_all_dim": sharpening} for name in ("rope_scaling", "rope_parameters")}


_DENSE: Table = (
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads", held=_held("heads")),
    Only("num_key_value_heads", lambda found: found["heads"], written=_held("heads")),
    Only("hidden_act", "silu", written=lambda config: activation_name(parts.plain_ffn(config).activation)),
    Only("attention_bias", False),
    Only("rope_interleave", True),
    Field("hidden_size", "width"),
    Field("intermediate_size", "hidden"),
    Field("q_lora_rank", "query_rank", 1536, _held("query_rank"), null=True),
    Field("kv_lora_rank", "rank", 512, _held("rank")),
    Field("qk_nope_head_dim", "head_dim", 128, _held("head_dim")),
    Field("qk_rope_head_dim", "rotary_dim", 64, _held("rotary_dim")),
    Field("v_head_dim", "value_dim", 128, _held("value_dim")),
    Field("vocab_size", "vocab_size"),
    Pair(_read_rope, _write_rope),
    Field("rms_norm_eps", "epsilon", 1e-6),
    Field("tie_word_embeddings", "tied", False),
)
"""The options that these families share."""


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "model.embed_tokens.weight")
    for layer in parts.layers(config):
        name = f"model.layers.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.input_layernorm", "mixer_norm")
        yield from _attention(layer, f"{name}.self_attn")
        yield from parts.layer_norm(layer, f"{name}.post_attention_layernorm", "ffn_norm")
        mixed = isinstance(layer.block.ffn, MoEConfig)
        yield from _expert_tensors(layer, f"{name}.mlp") if mixed else parts.llama_ffn(layer, f"{name}.mlp")
    yield from parts.norm("model.norm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _expert_tensors(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    yield from expert_tensors.router(layer, f"{name}.gate")
    if isinstance(parts.experts_of(layer.block).router, SigmoidConfig):
        leaf = layer.leaf("ffn/router/bias", "x")
        yield Tensor(f"{name}.gate.e_score_correction_bias", "x", (leaf,), layer.sizes)
    yield from expert_tensors.each(layer, f"{name}.experts.", *expert_tensors.LLAMA)
    yield from expert_tensors.shared(layer, f"{name}.shared_experts")


def _attention(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    """The tensors fuse the features with and without RoPE, and keys with values."""
    mixer = parts.mixer_of(layer.block, LatentAttentionConfig)
    layer = layer.with_sizes(n=mixer.heads, q=mixer.query_rank or 0, r=mixer.rank, w=mixer.value_dim)

    def linear(theirs: str, layout: str, inputs: str, *leaves: tuple[str, str, int, int]) -> Iterator[Tensor]:
        found = tuple(layer.leaf(f"mixer/{ours}", axes, share, turned) for ours, axes, share, turned in leaves)
        yield from parts.linear(layer, f"{name}.{theirs}", layout, inputs, found, False)

    rotary, source, query = mixer.rotary_dim, "d", "q_proj"
    if mixer.query_rank is not None:
        source, query = "q", "q_b_proj"
        yield from linear("q_a_proj", "q d", "d", ("query_down", "d q", 1, 0))
        leaf = layer.leaf("mixer/query_norm", "d")
        yield from parts.norm(f"{name}.q_a_layernorm", mixer.norm, leaf, mixer.query_rank)
    heads = f"{source} n s"
    fused = (("query", heads, mixer.head_dim, 0), ("query_rotary", heads, rotary, rotary))
    yield from linear(query, f"(n s) {source}", source, *fused)
    fused = (("latent", "d s", mixer.rank, 0), ("key_rotary", "d s", rotary, rotary))
    yield from linear("kv_a_proj_with_mqa", "s d", "d", *fused)
    yield from parts.norm(f"{name}.kv_a_layernorm", mixer.norm, layer.leaf("mixer/latent_norm", "d"), mixer.rank)
    fused = (("key", "r n s", mixer.head_dim, 0), ("value", "r n s", mixer.value_dim, 0))
    yield from linear("kv_b_proj", "(n s) r", "r", *fused)
    yield from linear("o_proj", "d (n w)", "n w", ("out", "n w d", 1, 0))


def _first(settings: Settings, default: int) -> int:
    """Number of dense layers before the MoE layers."""
    settings.only("moe_layer_freq", 1, default=1)
    return settings.given("first_k_dense_replace", default=default)


def _experts(settings: Settings, router: Router, count: int, hidden: int, shared: int) -> MoEConfig:
    """The MoE layer of a file, with the defaults of one of the two families."""
    return experts_of(
        settings.given("n_routed_experts", default=count),
        settings.given("moe_intermediate_size", default=hidden),
        router,
        settings.given("n_shared_experts", default=shared),
    )


def _limit(settings: Settings, groups: int | None, kept: int | None, best: int) -> GroupLimit | None:
    """The expert groups of a file; None for a single group, which is no limit."""
    groups, kept = settings.given("n_group", default=groups), settings.given("topk_group", default=kept)
    if groups is None or groups == 1:
        return None
    return GroupLimit(groups, given(kept, f"config.json has n_group = {groups} and no topk_group: state both"), best)


def _write_limit(router: SoftmaxConfig | SigmoidConfig) -> dict[str, Any]:
    limit = router.limit
    return {"n_group": limit.groups if limit else 1, "topk_group": limit.kept if limit else 1}


def _read_v2(settings: Settings, found: Arguments) -> Arguments:
    settings.only("mlp_bias", False, default=False)
    first = _first(settings, default=0)
    if first >= found["layers"]:
        return {}
    settings.only("scoring_func", "softmax", default="softmax")
    # transformers ignores norm_topk_prob here.
    settings.only("norm_topk_prob", False, default=False)
    method = settings.given("topk_method", default="greedy")
    known = ("greedy", "group_limited_greedy")
    check(method in known, f"config.json has topk_method = {method!r}: supported are {' and '.join(known)}")
    limit = None if method == "greedy" else _limit(settings, None, None, best=1)
    scale = float(settings.given("routed_scaling_factor", default=1.0))
    router = SoftmaxConfig(settings.need("num_experts_per_tok"), normalized=False, scale=scale, limit=limit, init=INIT)
    return {"layer": _experts(settings, router, 64, 1407, 2), "first": first}


def _read_v3(settings: Settings, found: Arguments) -> Arguments:
    first = _first(settings, default=3)
    if first >= found["layers"]:
        return {}
    settings.only("scoring_func", "sigmoid", default="sigmoid")
    settings.only("topk_method", "noaux_tc", default="noaux_tc")
    router = SigmoidConfig(
        settings.given("num_experts_per_tok", default=8),
        settings.given("norm_topk_prob", default=True),
        float(settings.given("routed_scaling_factor", default=2.5)),
        limit=_limit(settings, 8, 4, best=2),
        init=INIT,
    )
    return {"layer": _experts(settings, router, 256, 2048, 1), "first": first}


def _write_mixed(config: TransformerConfig) -> dict[str, Any]:
    mixed = parts.mixed_layers(config)
    if not mixed:
        return {"first_k_dense_replace": config.depth}
    layer = parts.expert_layer(config)
    shared = given(layer.shared, "the MoE layer has no shared expert: this family requires one")
    return {
        "first_k_dense_replace": mixed[0],
        "n_routed_experts": layer.count,
        "moe_intermediate_size": layer.expert.hidden,
        "n_shared_experts": shared.hidden // layer.expert.hidden,
        "num_experts_per_tok": parts.router_of(layer).top,
        "norm_topk_prob": parts.router_of(layer).normalized,
        "routed_scaling_factor": parts.router_of(layer).scale,
        **_write_limit(parts.router_of(layer)),
    }


def _write_v2(config: TransformerConfig) -> dict[str, Any]:
    limited = bool(parts.mixed_layers(config)) and parts.router_of(parts.expert_layer(config)).limit is not None
    return _write_mixed(config) | {"topk_method": "group_limited_greedy" if limited else "greedy"}


_V2: Table = (*_DENSE, Pair(_read_v2, _write_v2))
_V3: Table = (*_DENSE, Pair(_read_v3, _write_mixed))


# The multi-token prediction layer follows the others.
_SECOND = (r"^model\.layers\.61\.",)
FAMILIES = (
    Family("deepseek_v3", "DeepseekV3ForCausalLM", deepseek, _V3, _tensors, "model.", unread=_SECOND),
    Family("deepseek_v2", "DeepseekV2ForCausalLM", deepseek, _V2, _tensors, prefix="model."),
    Family("youtu", "YoutuForCausalLM", deepseek, defaults(_DENSE, tied=True), _tensors, prefix="model."),
)
