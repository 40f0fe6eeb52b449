"""The parts of a block: mixers, feed-forward layers, norms and positions, each selected by its config type.

Each kind of component has an abstract base (Mixer, FFN, Router, Dispatch, Norm, Kernel, Mask, AddedPosition,
RotaryPosition, PositionBias). To add a component, derive a configclass from the base.
"""

from llm_jax.layers.attention.attention import AttentionConfig, CrossAttentionConfig, QKNormConfig
from llm_jax.layers.attention.kernels import (
    BlockedKernel,
    ChunkedKernel,
    DotProductKernel,
    Kernel,
    PlainKernel,
    SplashKernel,
    TokamaxKernel,
)
from llm_jax.layers.attention.latent import LatentAttentionConfig
from llm_jax.layers.attention.masks import Bidirectional, BidirectionalWindow, Causal, Mask, Permuted, PrefixCausal
from llm_jax.layers.attention.relative import RelativeAttentionConfig
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig, FactorizedConfig
from llm_jax.layers.ffn.balance import BiasUpdate, ImportanceLoss, LoadLoss, SequenceLoss, ZLoss
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.capacity import Capacity, FixedCapacity
from llm_jax.layers.ffn.dispatch.dense import Dense
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.dispatch.seats import ByIndex, ByProducts
from llm_jax.layers.ffn.dispatch.slots import Slots
from llm_jax.layers.ffn.ffn import FFN
from llm_jax.layers.ffn.mlp import GLUConfig, MLPConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.expert_choice import ExpertChoiceConfig
from llm_jax.layers.ffn.routers.fixed import HashConfig, RandomConfig
from llm_jax.layers.ffn.routers.groups import GroupLimit
from llm_jax.layers.ffn.routers.router_scores import Jitter, Noisy
from llm_jax.layers.ffn.routers.sinkhorn import SinkhornConfig
from llm_jax.layers.ffn.routers.soft import SoftConfig
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.layers.ffn.routing import Router
from llm_jax.layers.initialisers import FanIn, Glorot, Init, Normal, Uniform, UniformFanIn, UniformGlorot, Zero
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.norms import LayerNormConfig, Norm, OffsetLayerNormConfig, PlainLayerNormConfig, RMSNormConfig
from llm_jax.layers.positions.alibi import ALiBiConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.layers.positions.position import AddedPosition, PositionBias, RotaryPosition
from llm_jax.layers.positions.relative_bias import LayerRelativeBiasConfig, RelativeBiasConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    YaRNScaling,
)
from llm_jax.layers.positions.sinusoidal import SinusoidalConfig
from llm_jax.layers.recurrent.lstm import LSTMConfig
from llm_jax.layers.recurrent.mamba2 import Mamba2Config
from llm_jax.layers.recurrent.retention import RetentionConfig
from llm_jax.layers.recurrent.rg_lru import RGLRUConfig

__all__ = [
    "ALiBiConfig",
    "AddedPosition",
    "AttentionConfig",
    "BiasUpdate",
    "Bidirectional",
    "BidirectionalWindow",
    "BlockedKernel",
    "ByIndex",
    "ByProducts",
    "Capacity",
    "Causal",
    "ChunkedKernel",
    "CrossAttentionConfig",
    "Dense",
    "Dispatch",
    "DotProductKernel",
    "Dropless",
    "DynamicScaling",
    "EmbedConfig",
    "ExpertChoiceConfig",
    "FFN",
    "FactorizedConfig",
    "FanIn",
    "FixedCapacity",
    "GLUConfig",
    "Glorot",
    "GroupLimit",
    "HashConfig",
    "ImportanceLoss",
    "Init",
    "Jitter",
    "Kernel",
    "LSTMConfig",
    "LatentAttentionConfig",
    "LayerNormConfig",
    "LayerRelativeBiasConfig",
    "LearnedPositionsConfig",
    "LinearScaling",
    "Llama3Scaling",
    "LoadLoss",
    "LongRoPEScaling",
    "MLPConfig",
    "Mamba2Config",
    "Mask",
    "Mixer",
    "MoEConfig",
    "Noisy",
    "Norm",
    "Normal",
    "OffsetLayerNormConfig",
    "Permuted",
    "PrefixCausal",
    "PlainKernel",
    "PositionBias",
    "PlainLayerNormConfig",
    "QKNormConfig",
    "RGLRUConfig",
    "RMSNormConfig",
    "RandomConfig",
    "RelativeAttentionConfig",
    "RelativeBiasConfig",
    "RetentionConfig",
    "RoPEConfig",
    "RotaryPosition",
    "Router",
    "ScoresConfig",
    "SequenceLoss",
    "SigmoidConfig",
    "SinkhornConfig",
    "SinusoidalConfig",
    "Slots",
    "SoftConfig",
    "SoftmaxConfig",
    "SplashKernel",
    "TokamaxKernel",
    "Uniform",
    "UniformFanIn",
    "UniformGlorot",
    "YaRNScaling",
    "ZLoss",
    "Zero",
]
