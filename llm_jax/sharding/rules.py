"""Strategies: visible tables from the logical axes of axes.py to mesh axes.

A strategy is a config type. It has `table()`, where parameters and activations lie while the model computes;
`gradients()`, where gradients are summed; and `optimizer()`, where the optimizer's state and moving averages lie, and
updates are made.
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

_BATCH = (DATA, FSDP, EXPERT)
_ORDER = [field.name for field in dataclasses.fields(Axes)]


class _OneTable(abc.ABC):
    """A strategy under which all copies of the parameters lie as the parameters do."""

    @abc.abstractmethod
    def table(self) -> Table:
        """Where parameters and activations lie while the model computes."""

    def gradients(self) -> Table:
        return self.table()

    def optimizer(self) -> Table:
        return self.table()


@configclass
class DataParallel(_OneTable):
    """Every device holds all parameters and sees its own examples."""

    use_pmap: bool = False
    """Whether by `jax.pmap`: every device then runs the program of one device, and sums gradients with the others.
    Dropout differs from device to device, and so from what a program over all devices draws."""

    def table(self) -> Table:
        table: Table = dict.fromkeys(axes.LOGICAL_AXES)
        return table | {axes.BATCH: _BATCH}


@configclass
class FullySharded:
    """FSDP, or ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): what replicas would hold twice is divided along the
    model width. Norm scales, a few kilobytes, stay whole.

    With ExpertParallel experts have replicas along the fsdp axis only, all else along the expert axis too."""

    stage: Literal[1, 2, 3] = 3
    """1: the optimizer's state and moving averages are divided. 2: so are gradients. 3: so are parameters, which are
    gathered layer by layer."""

    def __post_init__(self):
        check_one_of("stage", self.stage, (1, 2, 3))

    def table(self) -> Table:
        return self._divided(self.stage >= 3)

    def gradients(self) -> Table:
        return self._divided(self.stage >= 2)

    def optimizer(self) -> Table:
        return self._divided(True)

    def _divided(self, divided: bool) -> Table:
        return DataParallel().table() | {axes.EMBED: (FSDP, EXPERT) if divided else None}


@configclass
class TensorParallel(_OneTable):
    """Every layer is cut: attention by heads, feed-forward layers by their inner features, embedding and scores by
    tokens (Shoeybi et al. 2019, arXiv:1909.08053, section 3). Of fewer key/value heads than devices every device holds
    all, and computes those that its query heads read."""

    sequence: bool = False
    """Whether the residual stream between the layers is divided too, by places of the row (Korthikanti et al. 2022,
    arXiv:2205.05198, 4.2.2); else every device holds all of it."""

    def table(self) -> Table:
        cut = dict.fromkeys((axes.HEADS, axes.KV_HEADS, axes.BLOCKS, axes.MLP, axes.VOCAB), TENSOR)
        return DataParallel().table() | cut | {axes.STREAM: TENSOR if self.sequence else None}


@configclass
class ExpertParallel(_OneTable):
    """Every device holds some of the experts, which tokens are sent to (Lepikhin et al. 2020, arXiv:2006.16668, 3.3);
    all else is data parallel."""

    def table(self) -> Table:
        return DataParallel().table() | {axes.EXPERTS: EXPERT}


@configclass
class PipelineParallel(_OneTable):
    """Every device holds a part of the depth, a stage, and passes rows on to the next (pipeline.py).

    All steps forward come before those backward, so that activations of the whole batch are kept, as without stages,
    or made again as Execution says. Dropout draws otherwise than without stages.

    What lies outside of the stages, such as embedding and head, is data parallel: all stages hold it, and compute it
    for rows of their own; FullySharded divides it. So is a segment of fewer repeats than stages, or with shared
    weights. With FullySharded the weights of a stage are gathered, and their gradients summed, once a pass and not once
    a microbatch, so that a device holds those of its stage whole while it computes; between updates all stays divided.
    """

    microbatches: int
    """Pieces of a batch that are under way at once: a multiple of the stages. More of them make a smaller bubble."""
    virtual_stages: int = 1
    """How often a row passes through all stages. 1: each holds layers that follow one another (Huang et al. 2019,
    arXiv:1811.06965). More: each holds so many shorter runs of layers, and the bubble is the smaller (Narayanan et al.
    2021, arXiv:2104.04473, 2.2); rows are passed on so many times as often, and weights, which lie in the order of the
    layers so that checkpoints do not depend on it, are exchanged between stages once a pass, gradients likewise."""

    def __post_init__(self):
        check_positive(microbatches=self.microbatches, virtual_stages=self.virtual_stages)

    def table(self) -> Table:
        return DataParallel().table() | {axes.BATCH: (DATA, FSDP, STAGE, EXPERT), axes.LAYERS: STAGE}


@configclass
class Ring:
    """Keys and values go from device to device, and the queries of every device meet them as they pass (Liu et al.
    2023, arXiv:2310.01889). It takes the place of the model's kernel."""

    balanced: bool = True
    """Whether devices may trade stretches before and after, where the mask would leave some of them idle: each then has
    one from the front of the row and one from its end, which together see as much as those of any other."""
    block: int = 512
    """Queries, and keys, of which a device makes the scores at once: memory grows with its square."""

    def __post_init__(self):
        check_positive(block=self.block)


@configclass
class AllToAll:
    """Every device gets whole rows of some of the heads, and the model's own kernel runs on them (Jacobs et al. 2023,
    arXiv:2309.14509, 3.1). The heads of one device must divide among those that share a row."""


Exchange = Ring | AllToAll


@configclass
class ContextParallel(_OneTable):
    """Every device sees a stretch of each row; where tokens see others, the stretches are exchanged."""

    exchange: Exchange = Ring()
    """How attention sees the other stretches. Which is cheaper depends on heads, length and network; results are the
    same."""

    def table(self) -> Table:
        return DataParallel().table() | {axes.LENGTH: CONTEXT, axes.STREAM: CONTEXT}


@configclass
class Combined:
    """Two strategies at once, each over mesh axes of its own, such as FullySharded and TensorParallel."""

    one: "Strategy"
    other: "Strategy"

    def __post_init__(self):
        kinds = [type(part).__name__ for part in parts(self)]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        check(
            DataParallel(use_pmap=True) not in (self.one, self.other),
            "strategy has DataParallel(use_pmap=True) and another: jax.pmap divides the batch and nothing else; set "
            "use_pmap to False",
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
    """The strategies that a product is made of."""
    if isinstance(strategy, Combined):
        yield from parts(strategy.one)
        yield from parts(strategy.other)
    else:
        yield strategy


def schedule(strategy: Strategy, stages: int) -> PipelineSchedule | None:
    """The pipeline of a strategy over so many stages; None without one.

    Raises:
      ValueError: for microbatches that the stages do not divide.
    """
    found = [part for part in parts(strategy) if isinstance(part, PipelineParallel)]
    return PipelineSchedule(stages, found[0].microbatches, found[0].virtual_stages) if found and stages > 1 else None


def mesh_axes(table: Table, word: str) -> tuple[str, ...]:
    """Mesh axes over which arrays are divided along `word`."""
    names = table[word]
    return (names,) if isinstance(names, str) else names or ()


def placed(table: Table, logical_axes: Iterable[str]) -> list[tuple[str, ...]]:
    """Mesh axes over which each axis of an array with these logical axes is divided: a mesh axis that several of them
    name divides the first."""
    found: list[tuple[str, ...]] = []
    for word in logical_axes:
        used = {axis for names in found for axis in names}
        found.append(tuple(axis for axis in mesh_axes(table, word) if axis not in used))
    return found


def _merged(one: Table, other: Table) -> Table:
    """Every word divided over the axes of both tables, in the order of the mesh."""
    used = {word: {*mesh_axes(one, word), *mesh_axes(other, word)} for word in one}
    return {word: tuple(axis for axis in _ORDER if axis in names) or None for word, names in used.items()}


@configclass
class ShardingConfig:
    """How arrays are laid over devices."""

    mesh: MeshConfig = MeshConfig()
    strategy: Strategy = DataParallel()
    offload: bool = False
    """Whether the optimizer's state lies in the host's memory between updates (Rajbhandari et al. 2021,
    arXiv:2104.07857, 5.2): memory of the devices for time to move it."""

    def __post_init__(self):
        tables = (self.strategy.table(), self.strategy.optimizer())
        used = {axis for table in tables for word in table for axis in mesh_axes(table, word)}
        idle = [axis for axis, size in self.mesh.sizes.items() if size != 1 and axis not in used]
        kind = type(self.strategy).__name__
        check(
            not idle,
            f"mesh.{', mesh.'.join(idle)} is not 1 and strategy {kind} divides nothing over it: all devices along it "
            "would do the same; set it to 1, or take a strategy that uses it (TensorParallel, Combined)",
        )
        check(
            not (self.offload and self.strategy == DataParallel(use_pmap=True)),
            "sharding.offload is True and strategy DataParallel(use_pmap=True): jax.pmap computes where the state is; "
            "set one of them to False",
        )
        schedule(self.strategy, self.mesh.stage)  # which may raise

    @property
    def schedule(self) -> PipelineSchedule | None:
        """The pipeline; None without one, and where the number of stages is left to the number of devices."""
        return schedule(self.strategy, self.mesh.stage)
