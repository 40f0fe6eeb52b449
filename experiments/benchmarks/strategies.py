"""What every strategy costs a device: FLOPs, memory and bytes sent in a step, from the compiler, beside the textbook.

Command: JAX_PLATFORMS=cpu python experiments/benchmarks/strategies.py [--sizes 125M] [--platform v5e:2x4] [--publish]
Needs:   pip install libtpu, to compile for TPUs

Eight devices, one row each, float32, no recomputation, layers in a loop. Nothing is allocated: the train step is
compiled from shapes. The textbook, with n devices along an axis, P bytes of parameters and A of the stream on a device:

    a reduction of gradients      (n-1)/n P as reduce-scatter, 2 (n-1)/n P as all-reduce (Thakur et al. 2005)
    ZeRO-1 and ZeRO-2             a reduction, and the new parameters gathered: (n-1)/n P (arXiv:1910.02054, 7.1)
    ZeRO-3 (FSDP)                 a reduction, and parameters gathered forward and backward: 2 (n-1)/n P (7.2)
    tensor                        four all-reduces of A a layer (arXiv:1909.08053, 3), one each for table and head
    tensor, sequence              the same bytes as gathers and reduce-scatters (arXiv:2205.05198, 4.2.2)
    ring                          keys and values n-1 times, in the backward pass again, and their gradients all round
                                  (arXiv:2310.01889, 3); a balanced ring also trades shards, which is not in it
    all-to-all                    (n-1)/n of queries, keys, values and contexts, forward and backward (arXiv:2309.14509)
    pipeline                      A of the whole batch once through all stages a round, and back; ours brings rows that
                                  wait to the first stage by a second ring, and those of the bubble pass as well

Of a table of embeddings, where its gradient is divided, ours exchanges the rows that were read, which are fewer bytes.
A compiler that has no reduce-scatter (XLA's for CPUs) makes an all-reduce instead, and the textbook column then says
what that costs.
"""

import dataclasses
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import tyro
from jax.experimental import topologies
from tables import machine, markdown, publish

from llm_jax.core import trees
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama
from llm_jax.models.stack import Execution
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.parity.strategies import STRATEGIES
from llm_jax.planning.program import Program, read
from llm_jax.sharding import axes
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import (
    ContextParallel,
    FullySharded,
    PipelineParallel,
    Ring,
    ShardingConfig,
    TensorParallel,
    parts,
)
from llm_jax.train.programs import Programs, programs
from llm_jax.train.step import StepConfig

DEVICES = 8

SIZES = {
    "tiny": lambda: llama(8, 8, 256, hidden=512, vocab_size=1024),
    "125M": lambda: llama(12, 12, 768, hidden=2048, max_length=2048),
    "1.3B": lambda: llama(24, 16, 2048, hidden=5504, max_length=2048),
    "7B": lambda: llama(32, 32, 4096, hidden=11008, max_length=2048),
}
"""The first three are LLaMAs of GPT-3's widths and depths (arXiv:2005.14165, table 2.1) and of LLaMA's own."""

LAYOUTS = {name: strategy.sharding for name, strategy in STRATEGIES.items() if name not in ("pmap", "expert axis")} | {
    "ring, not balanced": ShardingConfig(MeshConfig(data=2, context=4), ContextParallel(Ring(balanced=False))),
    # A depth of 12 has no eight parts.
    "pipeline, two virtual stages": ShardingConfig(MeshConfig(data=4, stage=2), PipelineParallel(2, virtual_stages=2)),
}
"""Those of llm_jax/parity, and others in place of some."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to compile."""

    sizes: tuple[str, ...] = ("125M", "1.3B", "7B")
    """Models."""
    strategies: tuple[str, ...] = tuple(LAYOUTS)
    """How they lie on the devices."""
    length: int = 2048
    """Tokens of a row."""
    platform: str = "cpu"
    """cpu, or a TPU topology of eight chips by libtpu's name."""
    table: str = "strategies"
    """Name of its markers in experiments/README.md, and of the picture beside this file."""
    publish: bool = False
    """Write the table there, and the picture."""
    smoke: bool = False
    """Only see that it runs: a tiny model, no publishing."""


SMOKE = {"sizes": ("tiny",), "publish": False}


def textbook(made: Programs, config: TransformerConfig, length: int, scatters: bool) -> float:
    """Bytes that a device sends in a step.

    Args:
      scatters: whether the compiler has reduce-scatters; else gradients and sequences are all-reduced.
    """
    layout = made.layout
    found = {type(part): part for part in parts(layout.strategy)}
    params = made.abstract_state.params
    stack, stages = trees.size_bytes(params["stack"]), layout.parts(axes.LAYERS)
    rest = trees.size_bytes(params) - stack
    replicas = layout.parts(axes.BATCH) * layout.parts(axes.LENGTH)
    # Of its layers a stage has as many copies as there are pipelines, of embedding and head as there are devices.
    held = [(stack / stages, replicas // stages), (rest, replicas)]
    moved = sum(_weights(layout, found, size / layout.parts(axes.HEADS), copies, scatters) for size, copies in held)
    rows = DEVICES // layout.parts(axes.BATCH)
    stream = rows * length // layout.parts(axes.LENGTH) * config.width * 4
    if TensorParallel in found:
        reductions = 4 * config.depth + 2
        # A gather and a scatter move what one all-reduce does; without scatters a gather and an all-reduce move more.
        times = 3 if found[TensorParallel].sequence and not scatters else 2
        moved += reductions * times * _share(layout.parts(axes.HEADS)) * stream
    if ContextParallel in found:
        moved += config.depth * _attention(layout, found[ContextParallel], config, rows * length)
    if stages > 1:
        # A batch passes on as a whole, once for each round, and its gradients back.
        moved += 2 * stages * found[PipelineParallel].virtual_stages * stream
    return moved


def _share(devices: int) -> float:
    return (devices - 1) / devices


def _weights(layout: Layout, found: dict, held: float, replicas: int, scatters: bool) -> float:
    """For weights of so many bytes, of which there are so many replicas."""
    stage = found[FullySharded].stage if FullySharded in found else 0
    fsdp = layout.mesh.shape["fsdp"] if stage else 1
    gathers = {0: 0, 1: 1, 2: 1, 3: 2}[stage] * _share(fsdp) * held
    if scatters and stage >= 2:
        # Scattered over the devices that share a state, then all-reduced over copies of that share.
        return gathers + _share(fsdp) * held + 2 * _share(replicas // fsdp) * held / fsdp
    return gathers + 2 * _share(replicas) * held


def _attention(layout: Layout, strategy: ContextParallel, config: TransformerConfig, tokens: int) -> float:
    """Forward and backward, for one layer of so many tokens on the devices that share them."""
    (mixer,) = {block.mixer for segment in config.segments for block in segment.blocks}
    devices, heads = layout.parts(axes.LENGTH), layout.parts(axes.HEADS)
    bytes_of = lambda count: tokens / devices * count / heads * mixer.head_dim * 4  # noqa: E731
    if isinstance(strategy.exchange, Ring):
        return (3 * devices - 2) * bytes_of(2 * mixer.kv_heads)
    return 2 * _share(devices) * bytes_of(2 * mixer.heads + 2 * mixer.kv_heads)


def compile_step(config: TransformerConfig, sharding: ShardingConfig, arguments: Arguments) -> tuple[Programs, Program]:
    """The update of a model over eight devices, from shapes alone."""
    model = Transformer(dataclasses.replace(config, execution=Execution(unroll=1)))
    layout = Layout.of(sharding, _devices(arguments.platform))
    optimizer = AdamWConfig(peak_lr=1e-4)
    objective = CausalLMConfig()
    made = programs(model, objective, optimizer, StepConfig(), layout, steps=1000, seed=0)
    return made, read(made.compile_step(objective.abstract_batch(config, None, arguments.length, DEVICES)))


def _devices(platform: str) -> list[jax.Device]:
    if platform == "cpu":
        return jax.devices()[:DEVICES]
    chip = {"v5e": "default", "v6e": "default"}.get(platform.split(":")[0], "megacore")
    options = {"chip_config_name": chip, "num_slices": 1, "wrap": (False, False, False)}
    return list(topologies.get_topology_desc(platform="tpu", topology_name=platform, **options).devices)


def row(size: str, name: str, arguments: Arguments) -> dict[str, object]:
    """The figures of one size and strategy."""
    config = SIZES[size]()
    made, program = compile_step(config, LAYOUTS[name], arguments)
    expected = textbook(made, config, arguments.length, scatters=arguments.platform != "cpu")
    kinds = sorted({one.kind for one in program.collectives})
    return {
        "size": size,
        "strategy": name,
        "flops": program.flops,
        "uncounted": len(program.uncounted),
        "held": program.memory.held,
        "sent": program.moved_bytes(),
        "textbook": expected,
        "kinds": {kind: program.moved_bytes(kind) for kind in kinds},
    }


def table(rows: list[dict]) -> str:
    """For the README."""
    header = ("size", "strategy", "TFLOPs", "held GiB", "sent GiB", "textbook GiB", "sent / textbook", "by kind, GiB")
    lines = [
        (
            found["size"],
            found["strategy"],
            f"{'>= ' * bool(found['uncounted'])}{found['flops'] / 1e12:.3g}",
            f"{found['held'] / 2**30:.2f}",
            f"{found['sent'] / 2**30:.3f}",
            f"{found['textbook'] / 2**30:.3f}",
            f"{found['sent'] / found['textbook']:.2f}",
            ", ".join(f"{kind} {moved / 2**30:.3f}" for kind, moved in found["kinds"].items()),
        )
        for found in rows
    ]
    return markdown(header, lines)


def plot(rows: list[dict], path: Path) -> None:
    """Memory against bytes sent, a panel for each size, a point for each strategy."""
    sizes = list(dict.fromkeys(found["size"] for found in rows))
    figure, panels = plt.subplots(1, len(sizes), figsize=(5.2 * len(sizes), 4.4), squeeze=False, layout="constrained")
    names = list(dict.fromkeys(found["strategy"] for found in rows))
    colours = plt.get_cmap("tab20")
    for panel, size in zip(panels[0], sizes, strict=True):
        for found in (found for found in rows if found["size"] == size):
            index = names.index(found["strategy"])
            style = {"color": colours(index % 20), "marker": "osD^vPX"[index % 7], "s": 50, "label": found["strategy"]}
            panel.scatter(found["sent"] / 2**30, found["held"] / 2**30, **style)
        panel.set(title=size, xlabel="sent by a device in a step, GiB", ylabel="held by a device, GiB")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Arguments) -> None:
    """Prints the table, and with --publish writes it and the picture."""
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rows = []
    for size in arguments.sizes:
        for name in arguments.strategies:
            rows.append(row(size, name, arguments))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    about = f"{machine('jax')}; {arguments.platform} compiler; rows of {arguments.length:,} tokens, one to a device"
    print(text := f"{about}\n\n{table(rows)}")
    if arguments.publish:
        picture = Path(__file__).parent / f"{arguments.table}.png"
        plot(rows, picture)
        publish(arguments.table, f"{text}\n\n![memory against bytes sent](benchmarks/{picture.name})")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
