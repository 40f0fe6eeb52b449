"""When the stages of a pipeline work on what: the figures of a schedule."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llm_jax.core.checks import check, check_positive


class LayerRun(NamedTuple):
    """Layers that follow one another and are run in one step: where they lie, and where they are needed."""

    source: int
    """The stage that they lie at, with the runs before and after them."""
    place: int
    """Which of its runs they are."""
    target: int
    """The stage that runs them."""
    turn: int
    """The round in which it does."""


@dataclasses.dataclass(frozen=True)
class PipelineSchedule:
    """Microbatches pass through all stages, as often as there are virtual stages on each."""

    stages: int
    microbatches: int
    virtual_stages: int

    def __post_init__(self):
        check_positive(stages=self.stages, microbatches=self.microbatches, virtual_stages=self.virtual_stages)
        check(
            self.microbatches % self.stages == 0,
            f"strategy PipelineParallel has microbatches {self.microbatches} and mesh.stage is {self.stages}: stages "
            f"take microbatches in groups of their own number; set microbatches to a multiple of {self.stages}",
        )

    @property
    def groups(self) -> int:
        """Groups of microbatches; those of a group pass all virtual stages before the next group enters."""
        return self.microbatches // self.stages

    @property
    def steps(self) -> int:
        """Steps of the pipeline, in each of which all stages work once."""
        return self.virtual_stages * self.microbatches + self.stages - 1

    @property
    def bubble(self) -> float:
        """Share of the steps in which a stage has nothing to do: while the pipeline fills and empties (Huang et al.
        2019, arXiv:1811.06965, 2.3; with virtual stages Narayanan et al. 2021, arXiv:2104.04473, 2.2)."""
        return (self.stages - 1) / self.steps

    def exchanges(self) -> Iterator[list[LayerRun]]:
        """All runs of layers, sorted so that in each exchange every stage sends one and receives one."""
        # Stages `apart` from one another would send their runs of one place to the same stage.
        apart = self.stages // math.gcd(self.stages, self.virtual_stages)
        for number in range(self.virtual_stages):
            places = [(number + stage // apart) % self.virtual_stages for stage in range(self.stages)]
            numbers = [stage * self.virtual_stages + place for stage, place in enumerate(places)]
            yield [
                LayerRun(stage, place, run % self.stages, run // self.stages)
                for stage, (place, run) in enumerate(zip(places, numbers, strict=True))
            ]

    def cuts(self, repeats: int) -> bool:
        """Whether a segment of so many repeats is cut into stages. One of fewer repeats than stages is not: all devices
        hold it and compute it for rows of their own, as they do embedding and head.

        Raises:
          ValueError: for one of more repeats that the stages and virtual stages do not divide.
        """
        parts = self.stages * self.virtual_stages
        check(
            repeats < self.stages or repeats % parts == 0,
            f"a segment has {repeats} repeats, mesh.stage is {self.stages} and PipelineParallel has virtual_stages "
            f"{self.virtual_stages}: a segment is cut into stages * virtual_stages = {parts} equal parts; "
            f"{self._remedy(repeats)}",
        )
        return repeats >= self.stages

    def check(self, repeats: Sequence[int]) -> None:
        """That a stack whose segments have so many repeats of their own weights can be cut.

        Raises:
          ValueError: if a segment cannot, or all are too short.
        """
        check(
            any([self.cuts(number) for number in repeats]),
            f"mesh.stage is {self.stages} and the segments of the stack have repeats {tuple(repeats)}, those with "
            "shared weights left out: at least one must have as many as there are stages, or nothing is cut; "
            f"{self._remedy(max(repeats, default=1))}",
        )

    def check_rows(self, rows: int, parts: int) -> None:
        """That so many rows, divided over `parts` groups of stages, can be cut into microbatches.

        Raises:
          ValueError: if they cannot.
        """
        step = self.microbatches * parts
        check(
            rows % step == 0,
            f"a batch has {rows} rows, divided over {parts} replicas of the stages, and strategy PipelineParallel has "
            f"microbatches {self.microbatches}: a replica cuts its rows into that many equal microbatches; make "
            f"what is run at once, data.batch_size / update.accumulate, a multiple of {step}, or change microbatches",
        )

    def _remedy(self, repeats: int) -> str:
        fits = [(s, v) for s in range(2, repeats + 1) for v in range(1, repeats + 1) if repeats % (s * v) == 0]
        near = sorted(fits, key=lambda fit: (abs(fit[0] - self.stages), fit))
        return f"(stage, virtual_stages) that divide {repeats}, the nearest first: {near[:12]}"
