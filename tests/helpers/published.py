"""A tiny model of every published family, and of each of its kinds that is wired in another way."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.routers.groups import GroupLimit
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.relative_bias import LayerRelativeBiasConfig, RelativeBiasConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import LinearScaling, Llama3Scaling, YaRNScaling
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm
from llm_jax.models.block import Parallel, Serial
from llm_jax.models.build import boxed_parameters, build
from llm_jax.models.config import EncoderDecoderConfig, ModelConfig, TransformerConfig
from llm_jax.models.families.albert import albert
from llm_jax.models.families.bamba import bamba
from llm_jax.models.families.bart import bart, original
from llm_jax.models.families.bert import bert, discriminator
from llm_jax.models.families.bloom import bloom, mpt
from llm_jax.models.families.cohere import cohere, cohere2
from llm_jax.models.families.dbrx import dbrx
from llm_jax.models.families.deepseek import deepseek, experts
from llm_jax.models.families.encoder import sequence_head, span_head
from llm_jax.models.families.exaone4 import exaone4
from llm_jax.models.families.falcon import falcon
from llm_jax.models.families.gemma import gemma
from llm_jax.models.families.glam import glam
from llm_jax.models.families.glm import glm
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.gpt_neo import gpt_neo
from llm_jax.models.families.gpt_neox import gpt_neox
from llm_jax.models.families.gpt_oss import gpt_oss
from llm_jax.models.families.gptj import gptj
from llm_jax.models.families.granite import granite, granite_moe
from llm_jax.models.families.gshard import gshard
from llm_jax.models.families.lamda import lamda
from llm_jax.models.families.llama import llama
from llm_jax.models.families.lstm import lstm
from llm_jax.models.families.mamba2 import mamba2
from llm_jax.models.families.mixtral import mixtral
from llm_jax.models.families.modernbert import head_transform, modernbert, token_head
from llm_jax.models.families.mpnet import mpnet
from llm_jax.models.families.nemotron import nemotron, persimmon
from llm_jax.models.families.olmo import olmo
from llm_jax.models.families.olmo2 import olmo2, olmo3
from llm_jax.models.families.olmoe import olmoe
from llm_jax.models.families.opt import opt
from llm_jax.models.families.palm import palm
from llm_jax.models.families.phi import phi
from llm_jax.models.families.qwen import qwen2, qwen3
from llm_jax.models.families.qwen_moe import qwen2_moe, qwen3_moe
from llm_jax.models.families.recurrent_gemma import recurrent_gemma
from llm_jax.models.families.retnet import retnet
from llm_jax.models.families.stablelm import stablelm
from llm_jax.models.families.starcoder import starcoder, starcoder2
from llm_jax.models.families.switch import switch
from llm_jax.models.families.t5 import t5
from llm_jax.models.families.xlnet import xlnet
from llm_jax.models.heads import ClassHead
from llm_jax.models.stack import Execution
from tests.helpers.tiny import MAX_LENGTH, VOCAB

LIMITS = {"vocab_size": VOCAB, "max_length": MAX_LENGTH}
OLD = (2, 4, 16)
"""Layers, heads, width."""
NEW = {"hidden": 24, "kv_heads": 2}
LATENT = {"hidden": 24, "query_rank": 12, "rank": 8, "head_dim": 4, "rotary_dim": 2, "value_dim": 6}


_DEEPSEEK_V2 = experts(4, 10, SoftmaxConfig(2, False, 2.0, limit=GroupLimit(2, 1, best=1)), shared=2)
_DEEPSEEK_V3 = experts(8, 10, SigmoidConfig(2, scale=2.5, limit=GroupLimit(4, 2)), shared=1)


def executed(config: ModelConfig, execution: Execution) -> ModelConfig:
    """With all its stacks run so."""
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoderConfig(executed(config.encoder, execution), executed(config.decoder, execution))
    return dataclasses.replace(config, execution=execution)


def _looped(configs: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
    """With a loop over layers, which compiles fastest."""
    return {name: executed(config, Execution(unroll=1)) for name, config in configs.items()}


def _palm() -> TransformerConfig:
    config = palm(2, 4, 16, **LIMITS)
    (segment,) = config.segments
    (block,) = segment.blocks
    narrow = dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, head_dim=4))
    return dataclasses.replace(config, segments=(dataclasses.replace(segment, blocks=(narrow,)),))


PUBLISHED = {
    "gpt2": gpt2(*OLD, **LIMITS),
    "gpt3": gpt2(*OLD, **LIMITS, windows=(None, 3)),
    "gpt_neo": gpt_neo(*OLD, **LIMITS, windows=(None, 3)),
    "gptj": gptj(*OLD, rotated=2, **LIMITS),
    "gpt_neox": gpt_neox(*OLD, **LIMITS, rope=RoPEConfig(features=2)),
    "gpt_neox, serial": gpt_neox(*OLD, **LIMITS, rope=RoPEConfig(), parallel=False),
    "opt": opt(*OLD, **LIMITS),
    "opt, 350m": opt(*OLD, **LIMITS, embed_width=10, post_norm=True),
    "llama": llama(*OLD, **NEW, **LIMITS),
    "llama, linear": llama(*OLD, **NEW, **LIMITS, rope=RoPEConfig(scaling=LinearScaling(2.0))),
    "llama, llama3": llama(*OLD, **NEW, **LIMITS, rope=RoPEConfig(scaling=Llama3Scaling(original_length=8))),
    "llama, yarn": llama(*OLD, **NEW, **LIMITS, rope=RoPEConfig(scaling=YaRNScaling(4.0, original_length=4))),
    "mistral": llama(*OLD, **NEW, **LIMITS, window=5),
    "qwen2": qwen2(*OLD, **NEW, **LIMITS, tied=True),
    "qwen3": qwen3(*OLD, **NEW, **LIMITS, head_dim=6),
    "phi3": llama(*OLD, **NEW, **LIMITS, rope=RoPEConfig(features=2), window=5),
    "olmo2": olmo2(*OLD, **NEW, **LIMITS),
    "olmo3": olmo3(*OLD, **NEW, **LIMITS, window=(3, None), rope=RoPEConfig(scaling=YaRNScaling(4.0, 4))),
    "smollm3": llama(*OLD, **NEW, **LIMITS, rope=(RoPEConfig(), None), window=(None, 3), tied=True),
    "exaone4": exaone4(*OLD, **NEW, **LIMITS, window=(3, None), rope=RoPEConfig()),
    "ernie4_5": llama(*OLD, **NEW, **LIMITS, head_dim=6, bias=True, ffn_bias=True),
    "glm": glm(*OLD, **NEW, **LIMITS, head_dim=4),
    "glm4": glm(*OLD, **NEW, **LIMITS, head_dim=4, sandwich=True),
    "stablelm": stablelm(*OLD, **NEW, **LIMITS, rope=RoPEConfig(features=2), bias=True),
    "stablelm, parallel": stablelm(*OLD, **NEW, **LIMITS, rope=RoPEConfig(features=2), parallel=True),
    "cohere": cohere(*OLD, **NEW, **LIMITS),
    "cohere, normalised heads": cohere(*OLD, **NEW, **LIMITS, qk_norm=True),
    "cohere2": cohere2(*OLD, **NEW, **LIMITS, window=(3, None)),
    "phi": phi(*OLD, **NEW, **LIMITS, rope=RoPEConfig(features=2)),
    "olmo": olmo(*OLD, **NEW, **LIMITS, clip=0.8),
    "granite": granite(*OLD, **NEW, **LIMITS),
    "granitemoe": granite_moe(*OLD, **NEW, **LIMITS, experts=4, top=2),
    "nemotron": nemotron(*OLD, **NEW, **LIMITS, rope=RoPEConfig(features=2)),
    "persimmon": persimmon(*OLD, hidden=24, **LIMITS, rope=RoPEConfig(features=2)),
    "gemma": gemma(*OLD, **NEW, head_dim=6, **LIMITS),
    "gemma2": gemma(
        *OLD, **NEW, head_dim=6, **LIMITS, windows=(3, None), scale=20**-0.5, softcaps=(5.0, 3.0), sandwich=True
    ),
    "gemma3": gemma(
        3,
        *OLD[1:],
        **NEW,
        head_dim=6,
        **LIMITS,
        windows=(3, 3, None),
        rope=RoPEConfig(1e6),
        qk_norm=True,
        sandwich=True,
    ),
    "falcon, 7b": falcon(*OLD, kv_heads=1, wiring=Parallel(), **LIMITS),
    "falcon, 40b": falcon(*OLD, kv_heads=2, wiring=Parallel(shared_norm=False), **LIMITS),
    "falcon, alibi": falcon(*OLD, kv_heads=4, wiring=Serial(), rope=None, bias=True, **LIMITS),
    "bloom": bloom(*OLD, **LIMITS),
    "mpt": mpt(2, 6, 24, **LIMITS),
    "starcoder": starcoder(*OLD, **LIMITS),
    "starcoder2": starcoder2(*OLD, kv_heads=2, **LIMITS, window=5),
    "palm": _palm(),
    "lamda": lamda(*OLD, head_dim=6, hidden=24, **LIMITS, bias=RelativeBiasConfig(4, 5)),
    "deepseek": deepseek(*OLD, **LATENT, **LIMITS),
    "deepseek, yarn": deepseek(
        *OLD,
        **LATENT | {"query_rank": None},
        **LIMITS,
        rope=RoPEConfig(scaling=YaRNScaling(4.0, 4, magnitude=1.0)),
        sharpening=1.0,
    ),
    "mixtral": mixtral(*OLD, **NEW, **LIMITS, experts=3),
    "qwen2_moe": qwen2_moe(*OLD, **NEW, **LIMITS, experts=4, top=2, expert_hidden=10, shared_hidden=12, mixed=(1,)),
    "qwen3_moe": qwen3_moe(*OLD, **NEW, **LIMITS, head_dim=6, experts=4, top=3, expert_hidden=10),
    "olmoe": olmoe(*OLD, **NEW, **LIMITS, experts=4, top=2, clip=0.8),
    "deepseek_v2": deepseek(*OLD, **LATENT, **LIMITS, layer=_DEEPSEEK_V2),
    "deepseek_v3": deepseek(*OLD, **LATENT, **LIMITS, layer=_DEEPSEEK_V3),
    "dbrx": dbrx(*OLD, **NEW, **LIMITS, clip=0.8, experts=3, top=2),
    "gpt_oss": gpt_oss(*OLD, **NEW, **LIMITS, rope=RoPEConfig(), head_dim=6, windows=(3, None), experts=3, top=2),
    "glam": glam(*OLD, experts=3, head_dim=6, hidden=24, **LIMITS, bias=RelativeBiasConfig(4, 5), dispatch=Dropless()),
    "recurrent_gemma": recurrent_gemma(4, *OLD[1:], hidden=24, channels=24, window=3, taps=3, bias=True, **LIMITS),
    "lstm": lstm(2, 16, **LIMITS),
    "mamba2": mamba2(2, 16, **LIMITS, head_dim=8, groups=2, state_size=6, form=ChunkwiseForm(3)),
    "mamba2, biases": mamba2(2, 16, **LIMITS, head_dim=8, state_size=8, bias=True, step_limit=(0.1, 2.0), tied=False),
    "bamba": bamba(*OLD, **NEW, **LIMITS, attention=(1,), head_dim=8, groups=2, state_size=8, form=ChunkwiseForm(3)),
    "bamba, biases": bamba(
        *OLD,
        **NEW,
        **LIMITS,
        attention=(0,),
        head_dim=8,
        state_size=8,
        rope=RoPEConfig(scaling=LinearScaling(2.0)),
        bias=True,
        ffn_bias=True,
        recurrent_bias=True,
        tied=True,
    ),
    "retnet": retnet(*OLD, **LIMITS, form=ChunkwiseForm(3)),
}
"""By name. DynamicScaling and LongRoPEScaling are left to tests of their own: beyond their original length the angles
of a row depend on its end, so that not even causality holds."""
PUBLISHED = _looped(PUBLISHED)

ENCODERS = _looped(
    {
        "bert": bert(*OLD, **LIMITS),
        "bert, rows": bert(*OLD, **LIMITS, head=sequence_head(3)),
        "bert, tokens": bert(*OLD, **LIMITS, types=3, head=ClassHead(5)),
        "bert, spans": bert(*OLD, **LIMITS, head=span_head()),
        "roberta": bert(*OLD, **LIMITS, types=1, offset=2, epsilon=1e-5),
        "mpnet": mpnet(*OLD, **LIMITS),
        "mpnet, rows": mpnet(*OLD, **LIMITS, head=sequence_head(3)),
        "distilbert": bert(*OLD, **LIMITS, types=0),
        "distilbert, rows": bert(*OLD, **LIMITS, types=0, head=sequence_head(3, "relu")),
        "electra, generator": bert(*OLD, **LIMITS, narrow=8),
        "electra, discriminator": bert(*OLD, **LIMITS, narrow=8, head=discriminator()),
        "albert": albert(4, *OLD[1:], **LIMITS, narrow=8, groups=2, inner=2),
        "modernbert": modernbert(3, *OLD[1:], **LIMITS, hidden=24, reach=(None, 2, None)),
        "modernbert, tokens": modernbert(
            *OLD,
            **LIMITS,
            hidden=24,
            reach=(2, None),
            bias=True,
            ffn_bias=True,
            norm_bias=True,
            head=token_head(3, head_transform(2, LayerNormConfig(), "relu", bias=True)),
        ),
        "albert, rows": albert(2, *OLD[1:], **LIMITS, narrow=8, head=sequence_head(2)),
    }
)
"""Every token sees its whole document; they have no cache."""

_NEAR = {"head_dim": 6, "buckets": 8, "max_distance": 12}
PAIRS = _looped(
    {
        "t5": t5(*OLD, hidden=24, **LIMITS, **_NEAR),
        "t5, 1.1": t5(
            *OLD, hidden=24, **LIMITS, **_NEAR, decoder_layers=1, activation="gelu_tanh", gated=True, tied=False
        ),
        "umt5": t5(
            *OLD,
            hidden=24,
            **LIMITS,
            **_NEAR,
            activation="gelu_tanh",
            gated=True,
            tied=False,
            distances=LayerRelativeBiasConfig,
        ),
        "switch": switch(*OLD, hidden=24, **LIMITS, **_NEAR, experts=3, dispatch=Dropless()),
        "gshard": gshard(2, 3, *OLD[1:], hidden=24, head_dim=6, **LIMITS, dispatch=Dropless()),
        "bart": bart(*OLD, **LIMITS, hidden=24),
        "original": original(*OLD, **LIMITS),
        "mbart": bart(*OLD, **LIMITS, hidden=24, scaled=True, pre_norm=True),
        "pegasus": original(*OLD, **LIMITS, bias=True, pre_norm=True),
        "marian": original(*OLD, **LIMITS, activation="silu", scaled=False, bias=True, decoder_layers=1),
    }
)
"""An encoder and a decoder that reads it."""

# No config.json can say how long its rows are: it has no table of positions.
PERMUTED = _looped({"xlnet": xlnet(*OLD, vocab_size=VOCAB, hidden=24)})
"""Every token sees what comes before it in an order that the row brings."""

EVERY = PUBLISHED | ENCODERS | PAIRS | PERMUTED


def _options(value: Any) -> Iterator[str]:
    """The types of a config's parts and which of their options are on: what decides how a model computes, sizes
    aside."""
    if isinstance(value, tuple):
        for part in value:
            yield from _options(part)
    elif dataclasses.is_dataclass(value) and not type(value).__module__.endswith(ELSEWHERE):
        for field in dataclasses.fields(value):
            part, name = getattr(value, field.name), f"{type(value).__name__}.{field.name}"
            yield f"{name} = {part}" if part is None or isinstance(part, bool | str) else name
            yield from _options(part)


def types(value: Any) -> Iterator[str]:
    """The types of a config's parts: what decides how layers are put together, their options aside."""
    if isinstance(value, tuple):
        for part in value:
            yield from types(part)
    elif dataclasses.is_dataclass(value) and not type(value).__module__.endswith(ELSEWHERE):
        yield type(value).__name__
        for field in dataclasses.fields(value):
            yield from types(getattr(value, field.name))


ELSEWHERE = ("initialisers", "balance", "rope_scaling")
"""Modules whose parts change numbers and no computation of whole models. Each has tests of its own."""


def covering(models: dict[str, ModelConfig], by: Callable[[Any], Iterator[str]] = _options) -> list[str]:
    """Names of models that have between them every option of every part that any of `models` has; with `types`, every
    type of part.

    What holds of every model because it holds of each part is tried on these. Counts, initial values, checkpoints and
    parity are tested of all.
    """
    options = {name: set(by(config)) for name, config in models.items()}
    missing, chosen = set().union(*options.values()), []
    while missing:
        best = max(options, key=lambda name: len(options[name] & missing))
        chosen.append(best)
        missing -= options[best]
    return [name for name in models if name in chosen]


@functools.cache
def described(config: ModelConfig) -> Any:
    """The shapes of its parameters, boxed with their logical axes and roles."""
    return boxed_parameters(build(config))
