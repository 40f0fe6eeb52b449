"""Train steps of experiments/references compiled for TPU pods that are not there: memory, collectives, estimated time.

Command: JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python experiments/benchmarks/tpu_aot.py [--rows NAME ...] [--publish]
Needs:   pip install libtpu

Nothing is allocated: the state is shapes with shardings. What is compiled is the whole update that `llm-jax train` runs
(model, loss, gradients, clipping, AdamW, guard against non-finite values; state donated), with one microbatch.

No time was measured. A step is estimated as the compiler's own cycles over the clock, plus kernels (attention, products
of groups), of which the compiler knows nothing, at an assumed half of the chip's peak, plus synchronous collectives at
an assumed bandwidth of the links; asynchronous ones are taken to be hidden. That ranks programs made by one compiler.

Dropless experts on several devices run one chunk of the all-to-all after another, until the busiest device has received
all of its tokens (layers/ffn/chunked_all_to_all.py). The estimate counts one chunk more than an even load needs,
for all kernels and transfers.
"""

import dataclasses
import gzip
import math
import time
from pathlib import Path

import jax
import tyro
from jax.experimental import topologies
from models import require
from tables import machine, markdown, publish

from llm_jax.assemble import experiment_programs
from llm_jax.core import chips
from llm_jax.experiment import Experiment, load_experiment
from llm_jax.layers.attention.kernels import SplashKernel
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.dispatch.seats import ByProducts
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.models import count
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama
from llm_jax.models.stack import Remat
from llm_jax.planning.program import Program, read
from llm_jax.sharding.partition import Layout

REFERENCES = Path(__file__).parent.parent / "references"
CLOCK = 1.75e9
"""Cycles a second of v5p and v6e: their peaks over what a cycle of the compiler's estimates of a large product does."""
KERNEL_SHARE = 0.5
"""Of the peak, assumed for attention kernels."""
LINK = 180e9
"""Bytes a second into a chip over both links of one axis of the torus, assumed for v5p and v6e."""
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
"""Products of all pairs of tokens in a splash attention kernel, by what its name contains."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """A part of a TPU pod."""

    topology: str
    """libtpu's name."""
    chip_config: str
    """libtpu's name of how the cores of a chip are used."""
    wrap: tuple[bool, bool, bool] = (True, True, True)
    """Axes along which the links close to a ring. Where libtpu is not told, it takes none for closed."""

    def devices(self) -> list[jax.Device]:
        """Descriptions of its chips."""
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=self.topology,
            wrap=self.wrap,
            chip_config_name=self.chip_config,
            chips_per_host_bounds=(2, 2, 1),
            num_slices=1,
        )
        return description.devices

    @property
    def lengths(self) -> list[int]:
        """Chips along each axis that has more than one, the longest first."""
        return sorted((n for n in map(int, self.topology.split(":")[1].split("x")) if n > 1), reverse=True)


SLICES = {
    "v5p-128": Slice("v5p:4x4x4", "megacore"),
    "v5p-512": Slice("v5p:4x8x8", "megacore"),
    "v6e-256": Slice("v6e:16x16", "default", (True, True, False)),
    "v5p-8": Slice("v5p:2x2x1", "megacore", (False, False, False)),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A reference on a slice."""

    reference: str
    slice: str
    rows: int
    """Per chip."""
    remat: Remat | None = None
    """None: as the reference has it."""
    tiny: bool = False
    """Whether the model is a tiny one in the reference's place."""
    dispatch: Dispatch | None = None
    """Of all experts; None: as the reference has it."""


ROWS = {
    "tiny": Row("llama2_7b", "v5p-8", 1, tiny=True),
    "tiny-full": Row("llama2_7b", "v5p-8", 1, "full", tiny=True),
    "7b": Row("llama2_7b", "v5p-128", 4),
    "7b-full": Row("llama2_7b", "v5p-128", 4, "full"),
    "7b-v6e": Row("llama2_7b", "v6e-256", 4, "full"),
    "70b": Row("llama2_70b", "v5p-512", 2),
    "gpt3": Row("gpt3_175b", "v5p-512", 3),
    "mixtral": Row("mixtral_8x7b", "v5p-128", 4),
    "mixtral-capacity": Row("mixtral_8x7b", "v5p-128", 4, dispatch=Capacity(1.25)),
    "mixtral-products": Row("mixtral_8x7b", "v5p-128", 4, dispatch=Capacity(1.25, moves=ByProducts())),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which programs to compile."""

    rows: tuple[str, ...] = ("7b", "7b-full", "7b-v6e", "70b")
    """Of the table, by their names in ROWS."""
    overrides: tuple[str, ...] = ()
    """Of the experiments, as on the command line of llm-jax train, such as `--objective.chunks=8`."""
    keep: Path | None = None
    """Folder for the compiled programs' text."""
    publish: bool = False
    """Write the table into experiments/README.md."""
    table: str = "tpu_aot"
    """Name of the markers there."""
    smoke: bool = False
    """Only see that it runs: a tiny model on four chips, no publishing."""


SMOKE = {"rows": ("tiny", "tiny-full"), "publish": False}


def experiment_of(row: Row, chips: int, overrides: tuple[str, ...] = ()) -> Experiment:
    """The reference with one microbatch of the row's size."""
    experiment = load_experiment(REFERENCES / f"{row.reference}.py", overrides)
    model = experiment.model
    if row.tiny:
        model = llama(1, 1, 256, hidden=512, head_dim=128, vocab_size=512, max_length=4096).with_kernel(SplashKernel())
    if row.dispatch is not None:
        model = _dispatched(model, row.dispatch)
    if row.remat is not None:
        model = dataclasses.replace(model, execution=dataclasses.replace(model.execution, remat=row.remat))
    return dataclasses.replace(
        experiment,
        model=model,
        data=dataclasses.replace(experiment.data, batch_size=row.rows * chips),
        update=dataclasses.replace(experiment.update, accumulate=1),
    )


def _dispatched(model: TransformerConfig, dispatch: Dispatch) -> TransformerConfig:
    """The same model with another dispatch to the experts of all its blocks."""

    def replaced(block: BlockConfig) -> BlockConfig:
        return dataclasses.replace(block, ffn=dataclasses.replace(block.ffn, dispatch=dispatch))

    segments = (dataclasses.replace(one, blocks=tuple(map(replaced, one.blocks))) for one in model.segments)
    return dataclasses.replace(model, segments=tuple(segments))


def compile_step(experiment: Experiment, devices: list[jax.Device]) -> jax.stages.Compiled:
    """The update of `experiment` over `devices`, from shapes alone."""
    data, made = experiment.data, experiment_programs(experiment, Layout.of(experiment.sharding, devices))
    objective = experiment.objective
    return made.compile_step(objective.abstract_batch(experiment.model, None, data.sequence_length, data.batch_size))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step; see the top of this file."""

    compute: float
    kernels: float
    synchronous: float
    asynchronous: float
    """Not counted into the step."""

    @property
    def step(self) -> float:
        return self.compute + self.kernels + self.synchronous


def estimate(program: Program, experiment: Experiment, slice: Slice, chip: chips.Chip, rows: int) -> Estimate:
    """Estimated seconds of a program with `rows` sequences per chip."""
    length = experiment.data.sequence_length
    pairs = (
        sum(
            segment.repeats * block.mixer.mixing_flops(length) / 2
            for segment in experiment.model.segments
            for block in segment.blocks
        )
        / experiment.model.depth
    )
    products = sum(
        kernel.executions * next((n for name, n in PRODUCTS.items() if name in kernel.name), 0)
        for kernel in program.kernels
    )
    noted = sum(kernel.executions * kernel.flops for kernel in program.kernels if kernel.flops is not None)
    seconds = {True: 0.0, False: 0.0}
    for one in program.collectives:
        seconds[one.asynchronous] += one.executions * one.moved_bytes / (LINK * _axes(slice, one.group))
    return Estimate(
        compute=program.cycles / CLOCK,
        kernels=(products * pairs * length * rows + noted) / (KERNEL_SHARE * chip.peak_flops),
        synchronous=seconds[False],
        asynchronous=seconds[True],
    )


def _axes(slice: Slice, group: int) -> int:
    """Axes of the torus that a group of chips spans."""
    lengths = slice.lengths
    spans = [math.prod(lengths[:count]) for count in range(1, len(lengths) + 1)]
    return next((count for count, chips in enumerate(spans, 1) if chips >= group), len(lengths))


def _windows(model: TransformerConfig) -> int:
    """Windows that are counted; 1 where there are none."""
    ffns = [block.ffn for segment in model.segments for block in segment.blocks]
    found = {ffn.dispatch.windows for ffn in ffns if isinstance(ffn, MoEConfig) and isinstance(ffn.dispatch, Dropless)}
    return 1 + max(found, default=0)


HEADER = (
    *("experiment", "slice", "rows x tokens a chip", "kept", "GiB taken", "GiB at peak", "product TFLOPs"),
    *("compute s", "kernels s", "synchronous s", "asynchronous s", "synchronous in loops", "step s", "MFU"),
)


def measure(name: str, arguments: Arguments) -> tuple[str, ...]:
    """A row of the table, by its name in ROWS."""
    row = ROWS[name]
    slice = SLICES[row.slice]
    devices = slice.devices()
    experiment = experiment_of(row, len(devices), arguments.overrides)
    start = time.perf_counter()
    built = compile_step(experiment, devices)
    print(f"compiled in {time.perf_counter() - start:.0f} s", flush=True)
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        with gzip.open(arguments.keep / f"{name}.txt.gz", "wt", 3) as file:
            file.write(built.as_text())
    program = read(built, _windows(experiment.model))
    unknown = [one for one in program.uncounted if not any(name in one.name for name in PRODUCTS)]
    if unknown:
        print(f"of unknown FLOPs, left out of the estimate: {', '.join(one.target for one in unknown)}", flush=True)
    chip = chips.chip(devices[0].device_kind)
    seconds = estimate(program, experiment, slice, chip, row.rows)
    length = experiment.data.sequence_length
    useful = row.rows * length * count.training_flops(experiment.model, length) / chip.peak_flops
    title = experiment.name if row.dispatch is None else f"{experiment.name}, {name.partition('-')[2]}"
    return (
        *(title, row.slice, f"{row.rows} x {length:,}", experiment.model.execution.remat),
        *(f"{size / 2**30:.2f}" for size in (program.memory.held, program.memory.peak)),
        *(f"{program.flops / 1e12:,.1f}", f"{seconds.compute:.3f}", f"{seconds.kernels:.3f}"),
        *(f"{seconds.synchronous:.3f}", f"{seconds.asynchronous:.3f}"),
        *(str(len(program.blocking)), f"{seconds.step:.3f}", f"{useful / seconds.step:.3f}"),
    )


def main(arguments: Arguments) -> None:
    """Compiles every program and prints the table."""
    require("libtpu")
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    rows = []
    for name in arguments.rows:
        rows.append(measure(name, arguments))
        print(markdown(HEADER, rows[-1:]), flush=True)
    text = f"{machine('jax', 'libtpu')}\n\n{markdown(HEADER, rows)}"
    print(f"\n{text}")
    if arguments.publish:
        publish(arguments.table, text)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))
