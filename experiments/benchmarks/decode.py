"""Generated tokens per second of our Generator against transformers' `generate` with its cache, on this machine.

Command: python experiments/benchmarks/decode.py [--size 10M] [--batches 1 8] [--publish]
Needs:   pip install torch transformers

Same shapes with random weights, float32, greedy; prompts of 32 tokens, 128 new ones, and no row stops early. A call is
prefill and all new tokens. Both sides take turns; figures are medians over rounds and ratios of medians. Our weights
are stacked by layer, as in training: cutting them up is part of every call.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tyro
from models import SIZES, Family, Size, SizeName, our_config, require, torch_model
from tables import alternate, machine, markdown, median, publish, threads

from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.models.build import boxed_parameters
from llm_jax.models.transformer import Transformer
from llm_jax.optim import SGDConfig
from llm_jax.train.state import initial_state


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    size: SizeName = "10M"
    families: tuple[Family, ...] = ("gpt2", "llama")
    batches: tuple[int, ...] = (1, 8)
    prompt: int = 32
    new_tokens: int = 128
    rounds: int = 7
    publish: bool = False
    """Write the table into experiments/README.md."""
    smoke: bool = False
    """Only see that it runs: a tiny model, one round, 8 tokens, no publishing."""


SMOKE = {"size": "tiny", "batches": (2,), "prompt": 4, "new_tokens": 8, "rounds": 1, "publish": False}


def ours(family: Family, size: Size, prompts: np.ndarray, new_tokens: int) -> Callable[[], object]:
    """A call of our Generator for prompts [B, P]."""
    model = Transformer(our_config(family, size))
    optimizer = SGDConfig(peak_lr=1.0).build(1, boxed_parameters(model))
    params = jax.jit(lambda: initial_state(model, optimizer, 0, ema=False).params)()
    generator = Generator(model, SamplingConfig(temperature=0), eos_id=None, pad_id=0)
    rows = prompts.tolist()
    return lambda: _checked(np.asarray(generator.generate(params, rows, new_tokens)), (len(rows), new_tokens))


def theirs(family: Family, size: Size, prompts: np.ndarray, new_tokens: int) -> Callable[[], object]:
    """A call of transformers' generate for prompts [B, P]."""
    import torch

    torch.set_num_threads(threads())
    model = torch_model(family, size).eval()
    inputs = torch.from_numpy(prompts.astype(np.int64))
    options = {
        "attention_mask": torch.ones_like(inputs),
        "do_sample": False,
        "use_cache": True,
        "min_new_tokens": new_tokens,
        "max_new_tokens": new_tokens,
        "pad_token_id": 0,
    }
    shape = (len(prompts), prompts.shape[1] + new_tokens)
    return lambda: _checked(model.generate(inputs, **options).numpy(), shape)


def main(arguments: Arguments) -> None:
    """Measures every row and prints the table."""
    require("torch", "transformers")
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    header = ("size", "family", "batch", "ours, tokens/s", "transformers, tokens/s", "ours / transformers")
    rows = [_row(family, batch, arguments) for family in arguments.families for batch in arguments.batches]
    text = f"{machine('jax', 'torch', 'transformers')}\n\n{markdown(header, rows)}"
    print(text)
    if arguments.publish:
        publish("decode", text)


def _row(family: Family, batch: int, arguments: Arguments) -> list[str]:
    size = SIZES[arguments.size]
    prompts = np.random.default_rng(0).integers(1, size.vocab_size, (batch, arguments.prompt))
    contenders = {
        "ours": ours(family, size, prompts, arguments.new_tokens),
        "transformers": theirs(family, size, prompts, arguments.new_tokens),
    }
    seconds = {name: median(times) for name, times in alternate(contenders, arguments.rounds, warmup=1).items()}
    rate = {name: batch * arguments.new_tokens / value for name, value in seconds.items()}
    ratio = rate["ours"] / rate["transformers"]
    row = [family, f"{batch}", f"{rate['ours']:,.0f}", f"{rate['transformers']:,.0f}", f"{ratio:.2f}"]
    return [arguments.size, *row]


def _checked(tokens: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if tokens.shape != shape:
        raise ValueError(f"generation returned shape {tokens.shape} where {shape} was asked for: a row stopped early")
    return tokens


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))
