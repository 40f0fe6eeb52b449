"""StarCoder (Li et al. 2023, arXiv:2305.06161, table 5): GPT-2 with one key/value head. StarCoder 2 (Lozhkov et al.
2024, arXiv:2402.19173, table 7): rotary positions, grouped heads, a sliding window.

Initialisation: N(0, 1 / sqrt(width)), smaller by 1 / sqrt(2 layers) for matrices that write to the residual stream,
biases 0 (github.com/bigcode-project/Megatron-LM, `--init-method-std 0.01275` of width 6144 in
examples/pretrain_bigcode_model.slurm, and megatron/model/gpt_model.py). StarCoder 2's are the `initializer_range`s of
its config.json files, of which the 7B has that of the 3B.
"""

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, residual_init


def starcoder(
    layers: int,
    heads: int,
    width: int,
    *,
    kv_heads: int = 1,
    vocab_size: int = 49152,
    max_length: int = 8192,
    hidden: int | None = None,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-5,
    tied: bool = True,
    stddev: float | None = None,
) -> TransformerConfig:
    """A StarCoder of any size; `hidden` None means four times the width, `stddev` None one over its root."""
    check_divides(heads, width, "heads", "width")
    init = Normal(width**-0.5 if stddev is None else stddev)
    norm, out_init = LayerNormConfig(epsilon), residual_init(layers, init.stddev)
    mixer = AttentionConfig(heads, width // heads, kv_heads, bias=True, init=init, out_init=out_init)
    ffn = MLPConfig(hidden or 4 * width, activation=activation, init=init, out_init=out_init)
    blocks, head = (BlockConfig(mixer, ffn, norm),) * layers, head_config(tied, init)
    embed = EmbedConfig(init, LearnedPositionsConfig(init))
    return decoder(blocks, width, vocab_size, max_length, norm, embed, head)


def starcoder2(
    layers: int,
    heads: int,
    width: int,
    *,
    kv_heads: int,
    hidden: int | None = None,
    vocab_size: int = 49152,
    max_length: int = 16384,
    rope: RoPEConfig = RoPEConfig(1e5),  # noqa: B008
    window: int | None = 4096,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-5,
    bias: bool = True,
    tied: bool = False,
    stddev: float | None = None,
) -> TransformerConfig:
    """A StarCoder 2 of any size; `hidden` None means four times the width, `stddev` None one over its root."""
    check_divides(heads, width, "heads", "width")
    init = Normal(width**-0.5 if stddev is None else stddev)
    norm, out_init = LayerNormConfig(epsilon), residual_init(layers, init.stddev)
    mixer = AttentionConfig(
        heads, width // heads, kv_heads, Causal(window), rope, bias=bias, init=init, out_init=out_init
    )
    ffn = MLPConfig(hidden or 4 * width, activation=activation, bias=bias, init=init, out_init=out_init)
    blocks, head = (BlockConfig(mixer, ffn, norm),) * layers, head_config(tied, init)
    return decoder(blocks, width, vocab_size, max_length, norm, EmbedConfig(init), head)


SIZES = {
    "starcoder": lambda: starcoder(40, 48, 6144),
    "starcoder2-3b": lambda: starcoder2(30, 24, 3072, kv_heads=2, rope=RoPEConfig(999_999.4420358813), tied=True),
    "starcoder2-7b": lambda: starcoder2(32, 36, 4608, kv_heads=4, rope=RoPEConfig(1e6), tied=True, stddev=0.018042),
    "starcoder2-15b": lambda: starcoder2(40, 48, 6144, kv_heads=4),
}
