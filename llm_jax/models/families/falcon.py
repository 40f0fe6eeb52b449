"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867, table 16) and RefinedWeb's baseline models (Penedo et al. 2023,
arXiv:2306.01116): parallel attention and ffn, few key/value heads; the baselines are serial, with ALiBi.

Initialisation: none is published; that of GPT-2 is used, N(0, 0.02), smaller by 1 / sqrt(2 layers) for matrices that
write to the residual stream, biases 0.
"""

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.alibi import ALiBiConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig, Parallel, Serial, Wiring
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, residual_init


def falcon(
    layers: int,
    heads: int,
    width: int,
    *,
    kv_heads: int,
    wiring: Wiring,
    rope: RoPEConfig | None = RoPEConfig(),  # noqa: B008
    vocab_size: int = 65024,
    max_length: int = 2048,
    hidden: int | None = None,
    bias: bool = False,
    activation: Activation = "gelu",
    epsilon: float = 1e-5,
    tied: bool = True,
) -> TransformerConfig:
    """A Falcon of any size.

    Args:
      rope: None: ALiBi, whose biases Falcon divides by sqrt(head size) together with the scores.
      hidden: width of the ffn; None: four times the model width.
    """
    check_divides(heads, width, "heads", "width")
    norm, out_init = LayerNormConfig(epsilon), residual_init(layers)
    head_dim = width // heads
    scores = ScoresConfig(bias=ALiBiConfig(factor=head_dim**-0.5) if rope is None else None)
    mixer = AttentionConfig(heads, head_dim, kv_heads, position=rope, scores=scores, bias=bias, out_init=out_init)
    ffn = MLPConfig(hidden or 4 * width, activation=activation, bias=bias, out_init=out_init)
    blocks = (BlockConfig(mixer, ffn, norm, wiring),) * layers
    head = head_config(tied)
    return decoder(blocks, width, vocab_size, max_length, norm, head=head)


SIZES = {
    "falcon-rw-1b": lambda: falcon(24, 32, 2048, kv_heads=32, wiring=Serial(), rope=None, vocab_size=50304, bias=True),
    "falcon-7b": lambda: falcon(32, 71, 4544, kv_heads=1, wiring=Parallel()),
    "falcon-40b": lambda: falcon(60, 128, 8192, kv_heads=8, wiring=Parallel(shared_norm=False)),
    "falcon-180b": lambda: falcon(80, 232, 14848, kv_heads=8, wiring=Parallel(shared_norm=False), tied=False),
}
