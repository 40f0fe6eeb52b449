"""The schedule of a pipeline: its steps, bubble and exchanges of weights."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llm_jax.core.checks import check, check_positive


class LayerRun(NamedTuple):
    """The consecutive layers of a virtual stage: where they are stored, and where they run."""

    source: int
    """The stage that stores them, with the runs before and after them."""
    place: int
    """Their index among the runs that it stores."""
    target: int
    """The stage that runs them."""
    turn: int
    """The round in which it runs them."""


@dataclasses.dataclass(frozen=True)
class PipelineSchedule:
    """A pipeline schedule. Microbatches pass through all stages `virtual_stages` times."""

    stages: int
    microbatches: int
    virtual_stages: int

    def __post_init__(self):
        check_positive(stages=self.stages, microbatches=self.microbatches, virtual_stages=self.virtual_stages)
        check(
            self.microbatches % self.stages == 0,
            f"strategy PipelineParallel has microbatches {self.microbatches} and mesh.stage is {self.stages}: the "
            "number of microbatches must be a multiple of the number of stages; set microbatches to a multiple of "
            f"{self.stages}",
        )

    @property
    def groups(self) -> int:
        """Number of groups of microbatches. A group passes all virtual stages before the next group enters."""
        return self.microbatches // self.stages

    @property
    def steps(self) -> int:
        """Number of pipeline steps; in each step every stage computes once."""
        return self.virtual_stages * self.microbatches + self.stages - 1

    @property
    def bubble(self) -> float:
        """Fraction of the steps in which a stage is idle, while the pipeline fills and empties (Huang et al. 2019,
        arXiv:1811.06965, 2.3; with virtual stages Narayanan et al. 2021, arXiv:2104.04473, 2.2)."""
        return (self.stages - 1) / self.steps

    def exchanges(self) -> Iterator[list[LayerRun]]:
        """All layer runs, grouped so that in each exchange every stage sends one and receives one."""
        # Stages at a distance of `apart` would send their runs of equal index to the same stage.
        apart = self.stages // math.gcd(self.stages, self.virtual_stages)
        for number in range(self.virtual_stages):
            places = [(number + stage // apart) % self.virtual_stages for stage in range(self.stages)]
            # Runs are numbered in the order of the layers: a stage stores consecutive ones, and they run on the stages
            # in turn.
            numbers = [stage * self.virtual_stages + place for stage, place in enumerate(places)]
            yield [
                LayerRun(stage, place, run % self.stages, run // self.stages)
                for stage, (place, run) in enumerate(zip(places, numbers, strict=True))
            ]

    def cuts(self, repeats: int) -> bool:
        """Whether a segment of `repeats` repeats is pipelined. A segment with fewer repeats than stages is not: all
        devices hold it and compute it for their own sequences, as they do with embedding and head.

        Raises:
          ValueError: if the segment is longer and stages times virtual stages do not divide its repeats.
        """
        parts = self.stages * self.virtual_stages
        check(
            repeats < self.stages or repeats % parts == 0,
            f"a segment has {repeats} repeats, mesh.stage is {self.stages} and PipelineParallel has virtual_stages "
            f"{self.virtual_stages}: repeats must be a multiple of stages * virtual_stages = {parts}; "
            f"{self._remedy(repeats)}",
        )
        return repeats >= self.stages

    def check(self, repeats: Sequence[int]) -> None:
        """Checks that a stack can be pipelined.

        Args:
          repeats: repeats of its segments without shared weights.

        Raises:
          ValueError: if a segment cannot be divided into stages, or all are too short.
        """
        check(
            any([self.cuts(number) for number in repeats]),
            f"mesh.stage is {self.stages} and the segments without shared weights have repeats {tuple(repeats)}: at "
            f"least one segment must have as many repeats as there are stages; {self._remedy(max(repeats, default=1))}",
        )

    def check_rows(self, rows: int, parts: int) -> None:
        """Checks that `rows` sequences, sharded over `parts` replicas of the stages, divide into microbatches.

        Raises:
          ValueError: if they do not.
        """
        step = self.microbatches * parts
        check(
            rows % step == 0,
            f"a batch has {rows} sequences on {parts} replicas of the stages, and strategy PipelineParallel has "
            f"microbatches {self.microbatches}: a replica divides its sequences into equal microbatches; set "
            f"data.batch_size / update.accumulate to a multiple of {step}, or change microbatches",
        )

    def _remedy(self, repeats: int) -> str:
        fits = [(s, v) for s in range(2, repeats + 1) for v in range(1, repeats + 1) if repeats % (s * v) == 0]
        near = sorted(fits, key=lambda fit: (abs(fit[0] - self.stages), fit))
        return f"(stage, virtual_stages) that divide {repeats}, the nearest first: {near[:12]}"
