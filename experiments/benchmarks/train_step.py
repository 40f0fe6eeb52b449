"""Tokens per second of our compiled train step against PyTorch's, same model, batch and AdamW, on this machine.

Command: python experiments/benchmarks/train_step.py [--sizes 1M 10M 124M] [--dtypes float32 bfloat16] [--publish]
         python experiments/benchmarks/train_step.py --isa AVX2 --dtypes float32 --table train_step_avx2 [--publish]
Needs:   pip install torch transformers; --nanodo PATH takes a clone of google-deepmind/nanodo as a third contender

Contenders take turns; figures are medians over rounds and ratios of medians. PyTorch runs transformers' GPT2LMHeadModel
and LlamaForCausalLM with scaled-dot-product attention, fused AdamW, gradients clipped to norm 1, autocast for bfloat16.
Parameter counts are checked to be equal (nanodo's GPT-2 has no biases: within 3%). What differs: ours masks documents,
keeps a norm per gradient and guards against non-finite updates; PyTorch decays biases and norms as well.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from models import SIZES, Family, Size, SizeName, our_config, require, torch_model
from nanodo_step import nanodo_step
from tables import alternate, machine, markdown, median, publish, threads

from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.models.build import boxed_parameters
from llm_jax.models.config import TransformerConfig
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.train.compile import compiled
from llm_jax.train.state import initial_state
from llm_jax.train.step import StepConfig, train_step

NumberType = Literal["float32", "bfloat16"]
InstructionSet = Literal["SSE4_2", "AVX2"]

_LIMITS = {
    "SSE4_2": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}
"""Environment variables of PyTorch's libraries, whose names for an instruction set differ."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which rows to measure."""

    sizes: tuple[SizeName, ...] = ("1M", "10M", "124M")
    families: tuple[Family, ...] = ("gpt2", "llama")
    dtypes: tuple[NumberType, ...] = ("float32", "bfloat16")
    rounds: int = 9
    compile: bool = True
    """Whether torch.compile takes part; it needs a C++ compiler."""
    isa: InstructionSet | None = None
    """Widest vector instructions of both contenders; None: all that the processor has. It binds XLA's own code and
    Eigen, ATen, torch.compile, oneDNN and MKL on Intel's processors. YNNPACK, which XLA uses for most products, and MKL
    on AMD's processors ask the processor instead: a table to publish needs one without wider instructions."""
    nanodo: Path | None = None
    """Folder of a clone of google-deepmind/nanodo, whose step then takes part in the GPT-2 rows."""
    publish: bool = False
    """Write the table into experiments/README.md."""
    table: str = "train_step"
    """Name of the markers there: tables of several versions stand side by side."""
    smoke: bool = False
    """Only see that it runs: a tiny model, one round, neither torch.compile nor publishing."""


SMOKE = {"sizes": ("tiny",), "dtypes": ("float32",), "rounds": 1, "compile": False, "publish": False}


def our_step(config: TransformerConfig, dtype: NumberType, tokens: np.ndarray) -> Callable[[], object]:
    """One update of our train step on tokens [B, T + 1]."""
    precision = MIXED if dtype == "bfloat16" else Precision()
    model = Transformer(config, precision)
    optimizer = AdamWConfig(peak_lr=1e-4).build(1000, boxed_parameters(model))
    step = compiled(train_step(model, CausalLMConfig(), optimizer, StepConfig(), 0), precision, donate_argnums=0)
    state = jax.jit(lambda: initial_state(model, optimizer, 0, ema=False))()
    batch = batch_of(tokens)

    def run() -> object:
        nonlocal state
        state, report = step(state, batch)
        return jax.block_until_ready((state, report))

    return run


def batch_of(tokens: np.ndarray) -> Batch:
    """The batch of rows of tokens [B, T + 1], one document each."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return jax.device_put(
        Batch.next_tokens({"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions})
    )


def torch_step(
    family: Family, size: Size, dtype: NumberType, tokens: np.ndarray, compile: bool
) -> Callable[[], object]:
    """One update of transformers' model of the same shape on tokens [B, T + 1]."""
    import torch

    torch.set_num_threads(threads())
    model = torch_model(family, size).train()
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
    require("torch", "transformers")
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    limit(arguments.isa)
    header = ["size", "family", "type", "ours, tokens/s"]
    header += [text for peer in _peers(arguments) for text in (f"{peer}, tokens/s", f"ours / {peer}")]
    rows = []
    for name in arguments.sizes:
        for family in arguments.families:
            for dtype in arguments.dtypes:
                rows.append(_row(name, family, dtype, arguments))
                print(markdown(header, rows[-1:]), flush=True)
    instructions = "" if arguments.isa is None else f", instructions up to {arguments.isa}"
    text = f"{machine('jax', 'torch', 'transformers')}{instructions}\n\n{markdown(header, rows)}"
    print(f"\n{text}")
    if arguments.publish:
        publish(arguments.table, text)


def limit(isa: InstructionSet | None) -> None:
    """Limits the instructions of this process, before XLA and PyTorch first look for them."""
    if isa is not None:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa={isa}"
        os.environ |= {"XLA_FLAGS": flags.strip(), "MKL_ENABLE_INSTRUCTIONS": isa} | _LIMITS[isa]


def _peers(arguments: Arguments) -> list[str]:
    """Columns beside ours, in order."""
    return ["torch eager"] + ["torch.compile"] * arguments.compile + ["nanodo"] * (arguments.nanodo is not None)


def _row(name: SizeName, family: Family, dtype: NumberType, arguments: Arguments) -> list[str]:
    size = SIZES[name]
    tokens = np.random.default_rng(0).integers(0, size.vocab_size, (size.batch, size.length + 1), dtype=np.int32)
    contenders = {
        "ours": our_step(our_config(family, size), dtype, tokens),
        "torch eager": torch_step(family, size, dtype, tokens, compile=False),
    }
    if arguments.compile:
        contenders["torch.compile"] = torch_step(family, size, dtype, tokens, compile=True)
    if arguments.nanodo is not None and family == "gpt2":
        contenders["nanodo"] = nanodo_step(arguments.nanodo, size, dtype, tokens)
    seconds = {key: median(times) for key, times in alternate(contenders, arguments.rounds).items()}
    rate = {key: size.batch * size.length / value for key, value in seconds.items()}
    row = [name, family, dtype, f"{rate['ours']:,.0f}"]
    for peer in _peers(arguments):
        row += [f"{rate[peer]:,.0f}", f"{rate['ours'] / rate[peer]:.2f}"] if peer in rate else ["-", "-"]
    return row


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))
