"""Peak temporary memory of the train step at a large vocabulary: chunked cross-entropy against the plain one.

Command: python experiments/benchmarks/memory.py [--chunks 1 8 16] [--publish]

The figure is the compiler's own (temp_size_in_bytes of memory_analysis) for the whole update of a small GPT-2: forward,
backward, clipping, AdamW. Nothing is allocated: programs are compiled from shapes. The plain loss is log-softmax over
the logits of the whole batch, [tokens, vocabulary] float32, differentiated by JAX.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from tables import machine, markdown, publish

from llm_jax.core.dtypes import Precision
from llm_jax.core.metrics import Ratio
from llm_jax.models.build import boxed_parameters
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.train.compile import compiled
from llm_jax.train.state import initial_state
from llm_jax.train.step import StepConfig, train_step


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Shapes of model and batch."""

    vocab_size: int = 131_072
    layers: int = 2
    heads: int = 4
    width: int = 256
    batch: int = 4
    length: int = 1024
    chunks: tuple[int, ...] = (1, 8, 16)
    publish: bool = False
    """Write the table into experiments/README.md."""
    smoke: bool = False
    """Only see that it runs: a tiny model, no publishing."""


SMOKE = {"vocab_size": 512, "layers": 1, "width": 32, "batch": 2, "length": 32, "chunks": (4,), "publish": False}


class PlainLM:
    """The loss that chunking is measured against; stands in for CausalLMConfig."""

    def loss(self, model: Transformer, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Ratio]]:
        log_p_BTV = jax.nn.log_softmax(model.apply({"params": params}, batch.inputs).logits_BTV)
        losses_BT = -jnp.take_along_axis(log_p_BTV, batch.targets_BT[..., None], axis=-1)[..., 0]
        loss = Ratio.of(losses_BT, batch.loss_weights_BT)
        return loss.total, {"loss": loss}


def peak_bytes(arguments: Arguments, objective: CausalLMConfig | PlainLM) -> int:
    """Temporary memory of the compiled update."""
    shape = (arguments.layers, arguments.heads, arguments.width)
    model = Transformer(gpt2(*shape, vocab_size=arguments.vocab_size, max_length=arguments.length))
    optimizer = AdamWConfig(peak_lr=1e-4).build(1000, boxed_parameters(model))
    state = jax.eval_shape(functools.partial(initial_state, model, optimizer, 0, ema=False))
    batch = CausalLMConfig().abstract_batch(model.config, None, arguments.length, arguments.batch)
    step = compiled(train_step(model, objective, optimizer, StepConfig(), 0), Precision(), donate_argnums=0)
    return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes


def main(arguments: Arguments) -> None:
    """Compiles every program and prints the table."""
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    plain = peak_bytes(arguments, PlainLM())
    rows = [("plain", f"{plain / 2**20:,.0f}", "1.00")]
    for chunks in arguments.chunks:
        peak = peak_bytes(arguments, CausalLMConfig(chunks=chunks))
        rows.append((f"chunks={chunks}", f"{peak / 2**20:,.0f}", f"{peak / plain:.2f}"))
    tokens = arguments.batch * arguments.length
    logits = 4 * tokens * arguments.vocab_size / 2**20
    shape = (
        f"GPT-2 of {arguments.layers} layers, width {arguments.width}; vocabulary {arguments.vocab_size:,}, "
        f"{tokens:,} tokens, logits {logits:,.0f} MiB; {jax.default_backend()} compiler"
    )
    text = f"{machine('jax')}\n\n{shape}\n\n{markdown(('loss', 'peak temporary MiB', 'of plain'), rows)}"
    print(text)
    if arguments.publish:
        publish("memory", text)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))
