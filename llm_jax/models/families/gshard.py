"""GShard's translation models (Lepikhin et al. 2020, arXiv:2006.16668, table 1 and section 4): encoder and decoder with
2 of many experts per token in every other layer. Their weights are not published: only parameter counts can be
compared, and those of the paper are 3 to 7% below those of its shapes.

Details that the paper does not state are as in T5 (Raffel et al. 2020, arXiv:1910.10683, 2.1).

Initialisation: that of its code (github.com/tensorflow/lingvo, lingvo/core/gshard_builder.py); in attention as T5; in
ffn, experts and routers uniform of variance 1 / fan-in; relative position biases N(0, 1 / sqrt(heads buckets)); token
embeddings N(0, 1).
"""

import dataclasses
from typing import Any

from llm_jax.layers.ffn.balance import LoadLoss
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.initialisers import UniformFanIn
from llm_jax.models.config import EncoderDecoderConfig
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.families.lamda import distance_init
from llm_jax.models.families.t5 import t5


def gshard(
    layers: int,
    experts: int,
    heads: int = 16,
    width: int = 1024,
    *,
    hidden: int = 8192,
    head_dim: int = 128,
    vocab_size: int = 32128,
    max_length: int = 512,
    dispatch: Dispatch = Capacity(1.0),  # noqa: B008
) -> EncoderDecoderConfig:
    """A GShard of any size.

    Args:
      layers: layers of each stack; the paper counts those of both.
      dispatch: by default the capacity is twice a uniform load of first choices, a uniform load of both choices (2.2).
    """
    init, buckets = UniformFanIn(), 32
    sizes: dict[str, Any] = {"hidden": hidden, "head_dim": head_dim, "vocab_size": vocab_size, "max_length": max_length}
    near: dict[str, Any] = {"buckets": buckets, "distance_init": distance_init(heads, buckets)}
    pair = t5(layers, heads, width, dense_init=init, **sizes, **near)
    expert = MLPConfig(hidden, "relu", bias=False, init=init, out_init=init)
    router = SoftmaxConfig(2, random_second=True, init=init)
    layer = MoEConfig(experts, expert, router, dispatch, (LoadLoss(),))
    encoder, decoder = (with_experts(stack, layer, range(1, layers, 2)) for stack in pair.stacks)
    return dataclasses.replace(pair, encoder=encoder, decoder=decoder)


SIZES = {
    "gshard-12l-128e": lambda: gshard(6, 128),
    "gshard-12l-512e": lambda: gshard(6, 512),
    "gshard-12l-2048e": lambda: gshard(6, 2048),
    "gshard-36l-128e": lambda: gshard(18, 128),
    "gshard-36l-512e": lambda: gshard(18, 512),
    "gshard-36l-2048e": lambda: gshard(18, 2048),
}
