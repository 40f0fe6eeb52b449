"""Bamba (huggingface.co/ibm-ai-platform/Bamba-9B-v2): Mamba-2 in most layers, attention with half of each head rotated
in a few, and a gated ffn in all.

Initialisation: that of the Mamba package, which its training takes (github.com/foundation-model-stack/fms-fsdp,
main_training_mamba.py): as in mamba2.py, and the same for attention and ffn; matrices that write to the residual stream
are smaller by 1 / sqrt(2 layers).
"""

from collections.abc import Sequence
from typing import Any

from llm_jax.core.checks import check, check_divides
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.initialisers import TORCH_DEFAULT
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import head_config, runs
from llm_jax.models.families.mamba2 import out_init, recurrence


def bamba(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    kv_heads: int | None = 8,
    attention: Sequence[int] = (9, 18, 27),
    rope: RoPEConfig | None = None,
    vocab_size: int = 128_256,
    max_length: int = 262_144,
    epsilon: float = 1e-5,
    bias: bool = False,
    ffn_bias: bool = False,
    tied: bool = False,
    recurrent_heads: int | None = None,
    recurrent_bias: bool = False,
    **recurrent: Any,
) -> TransformerConfig:
    """A Bamba of any size.

    Args:
      heads: of attention.
      kv_heads: None: as many as heads.
      attention: numbers of the layers that have it, counted from 0.
      rope: None: half of each head is rotated.
      bias: whether the projections of attention have biases.
      recurrent_heads, recurrent_bias: `heads` and `bias` of `recurrence` of mamba2.py.
      recurrent: its other options.
    """
    check_divides(heads, width, "heads", "width")
    check(
        set(attention) <= set(range(layers)),
        f"attention is {tuple(attention)} and there are {layers} layers: name some of 0 to {layers - 1}",
    )
    norm, size, writes = RMSNormConfig(epsilon), width // heads, out_init(2 * layers)
    ffn = GLUConfig(hidden, bias=ffn_bias, init=TORCH_DEFAULT, out_init=writes)
    own = {"heads": recurrent_heads, "bias": recurrent_bias, "epsilon": epsilon}
    rope = RoPEConfig(features=size // 2) if rope is None else rope
    sizes = (heads, size, heads if kv_heads is None else kv_heads)
    reading = BlockConfig(
        AttentionConfig(*sizes, Causal(), rope, bias=bias, init=TORCH_DEFAULT, out_init=writes), ffn, norm
    )
    recurring = BlockConfig(recurrence(width, 2 * layers, **own, **recurrent), ffn, norm)
    blocks = tuple(reading if layer in attention else recurring for layer in range(layers))
    return TransformerConfig(vocab_size, width, max_length, runs(blocks), norm, head=head_config(tied, TORCH_DEFAULT))


SIZES = {
    "bamba-9b": lambda: bamba(32, 32, 4096, hidden=14336),
}
