"""Tokens per second of our compiled train step against PyTorch's, same model, batch and AdamW, on this machine.

Command: python experiments/benchmarks/train_step.py [--sizes 1M 10M 124M] [--dtypes float32 bfloat16] [--publish]
Needs:   pip install torch transformers

Contenders take turns; figures are medians over rounds and ratios of medians. PyTorch runs transformers' GPT2LMHeadModel
and LlamaForCausalLM with scaled-dot-product attention, fused AdamW, gradients clipped to norm 1, autocast for bfloat16.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import torch
import transformers
import tyro
from tables import alternate, machine, markdown, median, publish

from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.data import Batch
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.llama import llama
from llm_jax.models.stack import Execution
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.train.compile import compiled
from llm_jax.train.state import abstract_parameters, initial_state
from llm_jax.train.step import StepConfig, train_step


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
    "1M": Size(4, 4, 128, 344, 1024, 8, 128),
    "10M": Size(6, 5, 320, 864, 8192, 4, 256),
    "124M": Size(12, 12, 768, 2048, 50257, 4, 256),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which rows to measure."""

    sizes: tuple[Literal["1M", "10M", "124M"], ...] = ("1M", "10M", "124M")
    families: tuple[Literal["gpt2", "llama"], ...] = ("gpt2", "llama")
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    rounds: int = 9
    compile: bool = True
    """Whether torch.compile takes part; it needs a C++ compiler."""
    publish: bool = False
    """Write the table into experiments/README.md."""


def ours(family: str, size: Size, dtype: str, tokens: np.ndarray) -> Callable[[], object]:
    """One update of our train step."""
    precision = MIXED if dtype == "bfloat16" else Precision()
    model = Transformer(_config(family, size), precision)
    shapes, axes = abstract_parameters(model)
    optimizer = AdamWConfig(peak_lr=1e-4).build(1000, shapes, axes)
    step = compiled(train_step(model, CausalLMConfig(), optimizer, StepConfig(), 0), precision, donate_argnums=0)
    state = jax.jit(lambda: initial_state(model, optimizer, 0, ema=False))()
    length = tokens.shape[1]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    batch = Batch.from_rows({"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions})
    batch = jax.device_put(batch)

    def run() -> object:
        nonlocal state
        state, report = step(state, batch)
        return jax.block_until_ready((state, report))

    return run


def torch_step(family: str, size: Size, dtype: str, tokens: np.ndarray, compile: bool) -> Callable[[], object]:
    """One update of transformers' model of the same shape."""
    torch.manual_seed(0)
    model = _torch_model(family, size)
    forward = torch.compile(model) if compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs = torch.from_numpy(tokens[:, :-1].astype(np.int64))
    targets = torch.from_numpy(tokens[:, 1:].astype(np.int64))

    def run() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = forward(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def main(arguments: Arguments) -> None:
    """Measures every row and prints the table."""
    torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
    rows = []
    for name in arguments.sizes:
        for family in arguments.families:
            for dtype in arguments.dtypes:
                rows.append(_row(name, family, dtype, arguments))
                print(markdown(_HEADER, rows[-1:]), flush=True)
    table = markdown(_HEADER, rows)
    note = machine("jax", "torch", "transformers")
    print(f"\n{note}\n\n{table}")
    if arguments.publish:
        publish("train_step", "python experiments/benchmarks/train_step.py --publish", f"{note}\n\n{table}")


_HEADER = ("size", "family", "type", "ours tokens/s", "torch eager", "torch.compile", "ours / eager", "ours / compile")


def _row(name: str, family: str, dtype: str, arguments: Arguments) -> list[str]:
    size = SIZES[name]
    tokens = np.random.default_rng(0).integers(0, size.vocab_size, (size.batch, size.length + 1), dtype=np.int32)
    contenders = {
        "ours": ours(family, size, dtype, tokens),
        "eager": torch_step(family, size, dtype, tokens, compile=False),
    }
    if arguments.compile:
        contenders["compile"] = torch_step(family, size, dtype, tokens, compile=True)
    seconds = {key: median(times) for key, times in alternate(contenders, arguments.rounds).items()}
    rate = {key: size.batch * size.length / value for key, value in seconds.items()}
    compile_rate, compile_ratio = "-", "-"
    if arguments.compile:
        compile_rate, compile_ratio = f"{rate['compile']:,.0f}", f"{rate['ours'] / rate['compile']:.2f}"
    return [
        name,
        family,
        dtype,
        f"{rate['ours']:,.0f}",
        f"{rate['eager']:,.0f}",
        compile_rate,
        f"{rate['ours'] / rate['eager']:.2f}",
        compile_ratio,
    ]


def _config(family: str, size: Size) -> TransformerConfig:
    shape = (size.layers, size.heads, size.width)
    limits = {"vocab_size": size.vocab_size, "max_length": size.length}
    config = gpt2(*shape, **limits) if family == "gpt2" else llama(*shape, size.hidden, **limits)
    return dataclasses.replace(config, execution=Execution(unroll=size.layers))


def _torch_model(family: str, size: Size) -> torch.nn.Module:
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
        )
        return transformers.GPT2LMHeadModel(config).train()
    config = transformers.LlamaConfig(
        vocab_size=size.vocab_size,
        max_position_embeddings=size.length,
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config).train()


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))
