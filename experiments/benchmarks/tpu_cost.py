"""What the TPU compiler makes of our formulations, against others; no TPU is needed.

Command: JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python experiments/benchmarks/tpu_cost.py [--publish]
Needs:   pip install libtpu

Compiled ahead of time is the whole bfloat16 train step on one chip, layers written out. Compute is the sum of the
compiler's own estimated cycles of all operations, without transfers and without the inside of Pallas kernels (splash
attention): a figure to rank programs by, never a time.
"""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import tyro
from jax.experimental import topologies
from models import Family, Size, our_config, require
from tables import machine, markdown, publish

from llm_jax.core.dtypes import MIXED
from llm_jax.layers.attention.kernels import BlockedKernel, Kernel, PlainKernel, SplashKernel
from llm_jax.models.build import boxed_parameters
from llm_jax.models.config import TransformerConfig
from llm_jax.models.stack import Execution
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding.platforms import tracing_for
from llm_jax.train.state import initial_state
from llm_jax.train.step import StepConfig, train_step


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which programs to compile."""

    topology: str = "v5e:2x2"
    """A TPU topology by libtpu's name; its first chip is compiled for."""
    families: tuple[Family, ...] = ("gpt2", "llama")
    size: Size = Size(layers=4, heads=12, width=768, hidden=2048, vocab_size=50257, batch=8, length=1024)
    publish: bool = False
    """Write the table into experiments/README.md."""
    smoke: bool = False
    """Only see that it runs: a tiny model, no publishing."""


SMOKE = {"size": Size(1, 2, 256, 512, 512, 2, 256), "families": ("llama",), "publish": False}


FORMULATIONS = {
    "as built": ("tpu", BlockedKernel()),
    "formulated as for GPUs": ("gpu", BlockedKernel()),
    "attention in one block": ("tpu", PlainKernel()),
    "splash attention": ("tpu", SplashKernel()),
}


def compile_step(config: TransformerConfig, size: Size, device: jax.Device) -> jax.stages.Compiled:
    """The update of our train step for one device, from shapes alone."""
    model = Transformer(config, MIXED)
    optimizer = AdamWConfig(peak_lr=1e-4).build(1000, boxed_parameters(model))
    state = jax.eval_shape(functools.partial(initial_state, model, optimizer, 0, ema=False))
    batch = CausalLMConfig().abstract_batch(config, None, size.length, size.batch)
    sharding = jax.sharding.SingleDeviceSharding(device)
    step = jax.jit(
        train_step(model, CausalLMConfig(), optimizer, StepConfig(), 0),
        in_shardings=(sharding, sharding),
        out_shardings=sharding,
        donate_argnums=0,
    )
    return step.lower(state, batch).compile()


def cycles(program: str) -> int:
    """Sum of the estimated cycles in optimized HLO text.

    Raises:
      ValueError: for a program with a loop, whose body would count once only, or without estimates.
    """
    if re.search(r"= .* while\(", program):
        raise ValueError("the program has a loop: its body would be counted once; write the layers out")
    found = [int(number) for number in re.findall(r'"estimated_cycles":"(\d+)"', program)]
    if not found:
        raise ValueError("the program has no estimated cycles: it was not compiled by libtpu")
    return sum(found)


def written_out(config: TransformerConfig, kernel: Kernel) -> TransformerConfig:
    """`config` with another attention kernel and without a loop over layers."""
    return dataclasses.replace(config.with_kernel(kernel), execution=Execution(unroll=config.depth))


def main(arguments: Arguments) -> None:
    """Compiles every program and prints the table."""
    require("libtpu")
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    device = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology).devices[0]
    header = ("family", "formulation", "compute, million cycles", "of as built", "temporary MiB", "of as built")
    rows = []
    for family in arguments.families:
        built = None
        for name, (platform, kernel) in FORMULATIONS.items():
            with tracing_for(platform):
                program = compile_step(written_out(our_config(family, arguments.size), kernel), arguments.size, device)
            figures = cycles(program.as_text()), program.memory_analysis().temp_size_in_bytes
            built = built or figures
            compute, memory = (f"{figure / first:.2f}" for figure, first in zip(figures, built, strict=True))
            row = (family, name, f"{figures[0] / 1e6:,.1f}", compute, f"{figures[1] / 2**20:,.0f}", memory)
            rows.append(row)
            print(markdown(header, rows[-1:]), flush=True)
    shape = ", ".join(f"{key} {value:,}" for key, value in dataclasses.asdict(arguments.size).items())
    text = f"{machine('jax', 'libtpu')}\n\n{device.device_kind}; {shape}\n\n{markdown(header, rows)}"
    print(f"\n{text}")
    if arguments.publish:
        publish("tpu_cost", text)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))
