"""Step time of sharded programs on a mesh of one device against the plain step, which knows of no mesh.

Command: JAX_PLATFORMS=cpu python experiments/benchmarks/sharding_overhead.py [--size 1M] [--rounds 15] [--publish]

All compute the same on the same tokens, in turn, round after round; a figure near 1 says that who does not divide
anything pays nothing for the means to.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tyro
from models import SIZES, Family, SizeName, our_config
from tables import alternate, machine, markdown, median, publish
from train_step import batch_of, our_step

from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import Combined, DataParallel, FullySharded, ShardingConfig, Strategy, TensorParallel
from llm_jax.train.programs import programs
from llm_jax.train.step import StepConfig

STRATEGIES: dict[str, Strategy] = {
    "DataParallel": DataParallel(),
    "DataParallel by pmap": DataParallel(use_pmap=True),
    "FullySharded": FullySharded(),
    "FullySharded x TensorParallel": Combined(FullySharded(), TensorParallel(sequence=True)),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    size: SizeName = "10M"
    """The model; see models.py."""
    family: Family = "llama"
    rounds: int = 15
    """Steps of each program."""
    publish: bool = False
    """Write the table into experiments/README.md."""
    smoke: bool = False
    """Only see that it runs: a tiny model, no publishing."""


SMOKE = {"size": "tiny", "rounds": 2, "publish": False}


def sharded_step(arguments: Arguments, strategy: Strategy, tokens: np.ndarray) -> Callable[[], object]:
    """One update on tokens [B, T + 1], compiled for a mesh of one device."""
    layout = Layout.of(ShardingConfig(MeshConfig(), strategy), jax.devices()[:1])
    model = Transformer(our_config(arguments.family, SIZES[arguments.size]))
    optimizer = AdamWConfig(peak_lr=1e-4)
    made = programs(model, CausalLMConfig(), optimizer, StepConfig(), layout, steps=1000, seed=0)
    batch, state = jax.device_put(batch_of(tokens), layout.rows), made.fresh()

    def run() -> object:
        nonlocal state
        with made.activated():
            state, report = made.step(state, batch)
        return jax.block_until_ready((state, report))

    return run


def main(arguments: Arguments) -> None:
    """Measures and prints the table."""
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    size = SIZES[arguments.size]
    tokens = np.random.default_rng(0).integers(0, size.vocab_size, (size.batch, size.length + 1), dtype=np.int32)
    contenders = {"plain": our_step(our_config(arguments.family, size), "float32", tokens)}
    contenders |= {name: sharded_step(arguments, strategy, tokens) for name, strategy in STRATEGIES.items()}
    seconds = {name: median(times) for name, times in alternate(contenders, arguments.rounds).items()}
    rows = [
        (arguments.size, name, f"{1000 * value:.1f}", f"{value / seconds['plain']:.3f}")
        for name, value in seconds.items()
    ]
    text = f"{machine('jax')}\n\n{markdown(('size', 'program', 'ms a step', 'of plain'), rows)}"
    print(text)
    if arguments.publish:
        publish("sharding_overhead", text)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))
