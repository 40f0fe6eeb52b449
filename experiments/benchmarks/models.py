"""The models that benchmarks measure: our configs and transformers' models of the same shape."""

import dataclasses
import importlib.util
from typing import TYPE_CHECKING, Literal

from llm_jax.models import count
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.llama import llama

if TYPE_CHECKING:
    import torch

Family = Literal["gpt2", "llama"]
SizeName = Literal["tiny", "1M", "10M", "124M"]


@dataclasses.dataclass(frozen=True)
class Size:
    """Shape of a model and its batch."""

    layers: int
    heads: int
    width: int
    hidden: int
    """Inner width of the gated ffn of LLaMA; GPT-2's is four times the width."""
    vocab_size: int
    batch: int
    length: int


SIZES = {
    "tiny": Size(2, 2, 32, 88, 256, 2, 64),
    "1M": Size(4, 4, 128, 344, 1024, 8, 128),
    "10M": Size(6, 5, 320, 864, 8192, 4, 256),
    "124M": Size(12, 12, 768, 2048, 50257, 4, 256),
}
"""By number of parameters; `tiny` serves the smoke runs."""


def require(*packages: str) -> None:
    """Ends the program with a clear message if a package that only benchmarks need is absent."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise SystemExit(
            f"this benchmark measures against {' and '.join(packages)}, and {' and '.join(missing)} cannot be "
            f"imported: pip install {' '.join(missing)}"
        )


def our_config(family: Family, size: Size) -> TransformerConfig:
    """Our model."""
    shape = (size.layers, size.heads, size.width)
    limits = {"vocab_size": size.vocab_size, "max_length": size.length}
    return gpt2(*shape, **limits) if family == "gpt2" else llama(*shape, hidden=size.hidden, **limits)


def torch_model(family: Family, size: Size) -> "torch.nn.Module":
    """transformers' model of the same shape, random weights from seed 0.

    Raises:
      ValueError: if it has another number of parameters than ours.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=size.vocab_size,
            n_positions=size.length,
            n_embd=size.width,
            n_layer=size.layers,
            n_head=size.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=size.vocab_size,
            max_position_embeddings=size.length,
            hidden_size=size.width,
            intermediate_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            tie_word_embeddings=False,
        )
        model = transformers.LlamaForCausalLM(config)
    check_parameters(family, size, sum(parameter.numel() for parameter in model.parameters()))
    return model


def check_parameters(family: Family, size: Size, theirs: int, tolerance: float = 0.0) -> None:
    """Both models must have as many parameters, or nearly.

    Raises:
      ValueError: if they differ by more than the share `tolerance`.
    """
    ours = count.parameters(our_config(family, size))
    if abs(ours - theirs) > tolerance * ours:
        raise ValueError(
            f"our {family} has {ours:,} parameters and the peer's {theirs:,}: the comparison would not be fair; "
            "make the two configs in benchmarks/models.py agree"
        )
