"""Strategies: explicit tables from the logical axes of axes.py to mesh axes.

A strategy is a config type with three tables: `table()` for parameters and activations in forward and backward pass,
`gradients()` for summed gradients, and `optimizer()` for the optimizer state, moving averages and the optimizer's
computations.
"""

import abc
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

from llm_jax.core.checks import check, check_one_of, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.sharding import axes
from llm_jax.sharding.mesh import CONTEXT, DATA, EXPERT, FSDP, STAGE, TENSOR, Axes, MeshConfig
from llm_jax.sharding.pipeline_schedule import PipelineSchedule

Table = dict[str, str | tuple[str, ...] | None]

# Devices along the expert axis are replicas for everything but the experts, so they too have different examples.
_BATCH = (DATA, FSDP, EXPERT)
_ORDER = [field.name for field in dataclasses.fields(Axes)]


class _OneTable(abc.ABC):
    """A strategy with one table for parameters, gradients and optimizer state."""

    @abc.abstractmethod
    def table(self) -> Table:
        """The table of parameters and activations in forward and backward pass."""

    def gradients(self) -> Table:
        return self.table()

    def optimizer(self) -> Table:
        return self.table()


@configclass
class DataParallel(_OneTable):
    """Every device holds all parameters and processes its own examples."""

    use_pmap: bool = False
    """Whether to use `jax.pmap`: every device then runs the function of one device, and gradients are summed over
    devices. Each device draws its own dropout, so it differs from that of a function over all devices."""

    def table(self) -> Table:
        table: Table = dict.fromkeys(axes.LOGICAL_AXES)
        return table | {axes.BATCH: _BATCH}


@configclass
class FullySharded:
    """FSDP, or ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): state that replicas would duplicate is sharded along
    the model width. Norm scales, a few kilobytes, are not sharded.

    With ExpertParallel, experts have replicas along the fsdp axis only, other parameters also along the expert axis."""

    stage: Literal[1, 2, 3] = 3
    """1: optimizer state and moving averages are sharded. 2: gradients too. 3: parameters too, which are all-gathered
    layer by layer."""

    def __post_init__(self):
        check_one_of("stage", self.stage, (1, 2, 3))

    def table(self) -> Table:
        return self._divided(self.stage >= 3)

    def gradients(self) -> Table:
        return self._divided(self.stage >= 2)

    def optimizer(self) -> Table:
        return self._divided(True)

    def _divided(self, divided: bool) -> Table:
        # Almost every large parameter has this axis once, whatever its layer.
        return DataParallel().table() | {axes.EMBED: (FSDP, EXPERT) if divided else None}


@configclass
class TensorParallel(_OneTable):
    """Every layer is sharded: attention by heads, feed-forward layers by their inner features, embedding and logits by
    the vocabulary (Shoeybi et al. 2019, arXiv:1909.08053, section 3). With fewer key/value heads than devices, every
    device holds the parameters of all of them and computes those that its query heads read."""

    sequence: bool = False
    """Whether the residual stream between the layers is sharded along the sequence (Korthikanti et al. 2022,
    arXiv:2205.05198, 4.2.2); otherwise it is replicated."""

    def table(self) -> Table:
        # The first matrix of a layer is cut by its outputs and the second by its inputs, so that the layer needs one
        # sum over devices at its end (Shoeybi et al. 2019, section 3).
        cut = dict.fromkeys((axes.HEADS, axes.KV_HEADS, axes.BLOCKS, axes.MLP, axes.VOCAB), TENSOR)
        return DataParallel().table() | cut | {axes.STREAM: TENSOR if self.sequence else None}


@configclass
class ExpertParallel(_OneTable):
    """Every device holds a subset of the experts, to which tokens are sent (Lepikhin et al. 2020, arXiv:2006.16668,
    3.3); everything else is data parallel."""

    def table(self) -> Table:
        return DataParallel().table() | {axes.EXPERTS: EXPERT}


@configclass
class PipelineParallel(_OneTable):
    """Every device holds a stage, a part of the layers, and sends activations to the next stage (pipeline_parallel.py).

    All forward steps come before all backward steps, so the activations of the whole batch are stored, as without
    stages, or recomputed as `Execution` specifies. Dropout differs from that without stages.

    Parts outside the stages, such as embedding and head, are data parallel: all stages hold them and compute them for
    their own sequences; FullySharded shards them. The same holds for segments with fewer repeats than stages or with
    shared weights. With FullySharded the weights of a stage are all-gathered, and their gradients summed, once per pass
    and not once per microbatch. A device therefore holds the full weights of its stage during a pass; between steps
    everything remains sharded.
    """

    microbatches: int
    """Number of microbatches of a batch, a multiple of the stages. More microbatches make the bubble smaller."""
    virtual_stages: int = 1
    """Number of passes of a sequence through all stages. 1: each stage holds consecutive layers (Huang et al. 2019,
    arXiv:1811.06965). V > 1: each stage holds V shorter runs of layers, and the bubble is smaller (Narayanan et al.
    2021, arXiv:2104.04473, 2.2). Activations are then sent V times as often. Weights are stored in the order of the
    layers, so that checkpoints do not depend on V, and are exchanged between stages once per pass, as gradients are."""

    def __post_init__(self):
        check_positive(microbatches=self.microbatches, virtual_stages=self.virtual_stages)

    def table(self) -> Table:
        # Outside the pipeline, stages are replicas with different sequences; inside it pipeline_parallel.py places
        # them.
        return DataParallel().table() | {axes.BATCH: (DATA, FSDP, STAGE, EXPERT), axes.LAYERS: STAGE}


@configclass
class Ring:
    """Ring attention: shards of keys and values rotate over the devices, and queries stay (Liu et al. 2023,
    arXiv:2310.01889). It replaces the model's kernel."""

    balanced: bool = True
    """Whether devices exchange shards before and after attention if the mask would leave some devices idle. Each then
    has one shard from the front of the sequence and one from its end, and all have the same work."""
    block: int = 512
    """Queries, and keys, per block of scores: memory grows with its square."""

    def __post_init__(self):
        check_positive(block=self.block)


@configclass
class AllToAll:
    """Every device gets whole sequences of a subset of the heads, and the model's kernel runs on them (Jacobs et al.
    2023, arXiv:2309.14509, 3.1). The heads of a device must divide over the devices that share a sequence."""


Exchange = Ring | AllToAll


@configclass
class ContextParallel(_OneTable):
    """Every device holds a shard of each sequence; layers that mix tokens exchange data between shards."""

    exchange: Exchange = Ring()
    """How attention accesses other shards. The cheaper exchange depends on heads, length and network; results are the
    same."""

    def table(self) -> Table:
        return DataParallel().table() | {axes.LENGTH: CONTEXT, axes.STREAM: CONTEXT}


@configclass
class Combined:
    """Two strategies combined, each over its own mesh axes, such as FullySharded and TensorParallel."""

    one: "Strategy"
    other: "Strategy"

    def __post_init__(self):
        kinds = [type(part).__name__ for part in parts(self)]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        check(
            DataParallel(use_pmap=True) not in (self.one, self.other),
            "strategy has DataParallel(use_pmap=True) and another: jax.pmap only divides the batch; set use_pmap to "
            "False",
        )
        check(not twice, f"strategy has {', '.join(twice)} twice: combine strategies of different kinds")

    def table(self) -> Table:
        return _merged(self.one.table(), self.other.table())

    def gradients(self) -> Table:
        return _merged(self.one.gradients(), self.other.gradients())

    def optimizer(self) -> Table:
        return _merged(self.one.optimizer(), self.other.optimizer())


Strategy = DataParallel | FullySharded | TensorParallel | ExpertParallel | PipelineParallel | ContextParallel | Combined


def parts(strategy: Strategy) -> Iterator[Strategy]:
    """The strategies of which a strategy is combined."""
    if isinstance(strategy, Combined):
        yield from parts(strategy.one)
        yield from parts(strategy.other)
    else:
        yield strategy


def schedule(strategy: Strategy, stages: int) -> PipelineSchedule | None:
    """The pipeline schedule of a strategy with `stages` stages; None without a pipeline.

    Raises:
      ValueError: if the stages do not divide the microbatches.
    """
    found = [part for part in parts(strategy) if isinstance(part, PipelineParallel)]
    return PipelineSchedule(stages, found[0].microbatches, found[0].virtual_stages) if found and stages > 1 else None


def mesh_axes(table: Table, word: str) -> tuple[str, ...]:
    """Mesh axes over which arrays are sharded along the logical axis `word`."""
    names = table[word]
    return (names,) if isinstance(names, str) else names or ()


def placed(table: Table, logical_axes: Iterable[str]) -> list[tuple[str, ...]]:
    """Mesh axes over which each axis of an array with these logical axes is sharded. If several of them map to the same
    mesh axis, the first one is sharded."""
    found: list[tuple[str, ...]] = []
    for word in logical_axes:
        used = {axis for names in found for axis in names}
        found.append(tuple(axis for axis in mesh_axes(table, word) if axis not in used))
    return found


def _merged(one: Table, other: Table) -> Table:
    """Each logical axis mapped to the mesh axes of both tables, in the order of the mesh."""
    used = {word: {*mesh_axes(one, word), *mesh_axes(other, word)} for word in one}
    return {word: tuple(axis for axis in _ORDER if axis in names) or None for word, names in used.items()}


@configclass
class ShardingConfig:
    """The sharding of a run: mesh, strategy and offloading."""

    mesh: MeshConfig = MeshConfig()
    strategy: Strategy = DataParallel()
    offload: bool = False
    """Whether the optimizer state is in host memory between steps (Rajbhandari et al. 2021, arXiv:2104.07857, 5.2).
    This saves device memory and costs the time of the transfers."""

    def __post_init__(self):
        tables = (self.strategy.table(), self.strategy.optimizer())
        used = {axis for table in tables for word in table for axis in mesh_axes(table, word)}
        idle = [axis for axis, size in self.mesh.sizes.items() if size != 1 and axis not in used]
        kind = type(self.strategy).__name__
        check(
            not idle,
            f"mesh.{', mesh.'.join(idle)} is not 1 and strategy {kind} does not shard over it: its devices would "
            "repeat the same computation; set it to 1, or use a strategy that shards over it (TensorParallel, "
            "Combined)",
        )
        check(
            not (self.offload and self.strategy == DataParallel(use_pmap=True)),
            "sharding.offload is True and strategy DataParallel(use_pmap=True): jax.pmap does not support "
            "offloading; set one of them to False",
        )
        schedule(self.strategy, self.mesh.stage)  # which may raise

    @property
    def schedule(self) -> PipelineSchedule | None:
        """The pipeline schedule; None without a pipeline, and if the number of stages follows from the number of
        devices."""
        return schedule(self.strategy, self.mesh.stage)
