"""Switch Transformer (Fedus et al. 2021, arXiv:2101.03961, table 9): T5 with one expert per token in every other layer.

The sizes are those of the published checkpoints. They differ from the paper's: no ffn is gated, and the hidden width is
1.5 times as large, so that the number of parameters is the same.

Initialisation: Gaussian of variance 0.1 / fan-in truncated at two standard deviations, for every matrix of every layer
and router (section 2.4), otherwise as T5; table 3 has it reduce the spread between runs. Token embeddings are N(0, 1)
and the variance of relative position biases a tenth of T5's (github.com/google/flaxformer,
flaxformer/t5x/configs/moe/architectures/moe.gin with SCALE = 0.1 of models/tokens_choose_base.gin; routers there are
N(0, 0.02), attention and experts not truncated).

Dropout of the sizes: 0.4 inside the experts and 0.1 wherever T5 drops, as they are fine-tuned (sections 2.4 and 4.1,
table 4); the configs of flaxformer pre-train without (DROPOUT_RATE of moe.gin).
"""

import dataclasses
from typing import Any

from llm_jax.layers.ffn.balance import LoadLoss
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.router_scores import Jitter
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.initialisers import FanIn, UniformGlorot
from llm_jax.models.config import EncoderDecoderConfig, TransformerConfig
from llm_jax.models.dropout import Rates, with_dropout
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.families.t5 import t5


def switch(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    experts: int = 8,
    every: int = 2,
    decoder_every: int | None = None,
    bias: bool = False,
    dispatch: Dispatch = Capacity(1.25),  # noqa: B008
    **options: Any,
) -> EncoderDecoderConfig:
    """A Switch Transformer of any size; other options are those of `t5`.

    Args:
      every: one in `every` layers of the encoder has experts, beginning with the second layer; 0: none has.
      decoder_every: the same for the decoder; None: as the encoder.
      bias: whether the router's matrix has a bias.
    """
    # The paper's scale s is that of the variance, s / fan-in, and is a tenth of T5's.
    init, distance_init = FanIn(0.1**0.5, cut=2.0), UniformGlorot(0.1**0.5)
    inits = {"attention_init": init, "distance_init": distance_init, "dense_init": init}
    pair = t5(layers, heads, width, hidden=hidden, **inits, **options)
    expert = MLPConfig(hidden, "relu", bias=False, init=init, out_init=init)
    router = SoftmaxConfig(1, normalized=False, bias=bias, noise=Jitter(0.01), init=init)
    layer = MoEConfig(experts, expert, router, dispatch, (LoadLoss(),))

    def stack(config: TransformerConfig, every: int) -> TransformerConfig:
        mixed = [number for number in range(config.depth) if every and number % every == min(1, every - 1)]
        return with_experts(config, layer, mixed)

    decoder_every = every if decoder_every is None else decoder_every
    return dataclasses.replace(pair, encoder=stack(pair.encoder, every), decoder=stack(pair.decoder, decoder_every))


_RATES = Rates(embed=0.1, residual=0.1, attention=0.1, ffn=0.1, experts=0.4, final=0.1)


def _base(experts: int) -> EncoderDecoderConfig:
    return with_dropout(switch(12, 12, 768, hidden=3072, experts=experts), _RATES)


SIZES = {
    "switch-base-8": lambda: _base(8),
    "switch-base-16": lambda: _base(16),
    "switch-base-32": lambda: _base(32),
    "switch-base-64": lambda: _base(64),
    "switch-base-128": lambda: _base(128),
    "switch-base-256": lambda: _base(256),
    "switch-large-128": lambda: with_dropout(switch(24, 16, 1024, hidden=4096, experts=128), _RATES),
    "switch-c-2048": lambda: with_dropout(
        switch(15, 32, 2080, hidden=6144, experts=2048, every=1), dataclasses.replace(_RATES, ffn=None)
    ),
}
