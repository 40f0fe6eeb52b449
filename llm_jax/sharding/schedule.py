"""When the stages of a pipeline work on what: the figures of a schedule."""

import dataclasses
from collections.abc import Sequence

from llm_jax.core.checks import check, check_positive


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Rows in microbatches pass through all stages, so many rounds of them."""

    stages: int
    microbatches: int
    rounds: int

    def __post_init__(self):
        check_positive(stages=self.stages, microbatches=self.microbatches, rounds=self.rounds)
        check(
            self.microbatches % self.stages == 0,
            f"strategy PipelineParallel has microbatches {self.microbatches} and mesh.stage is {self.stages}: stages "
            f"take microbatches in groups of their own number; set microbatches to a multiple of {self.stages}",
        )

    @property
    def groups(self) -> int:
        """Groups of microbatches; those of a group make all rounds before the next group enters."""
        return self.microbatches // self.stages

    @property
    def steps(self) -> int:
        """Steps of the pipeline, in each of which all stages work once."""
        return self.rounds * self.microbatches + self.stages - 1

    @property
    def bubble(self) -> float:
        """Share of the steps in which a stage has nothing to do: while the pipeline fills and empties (Huang et al.
        2019, arXiv:1811.06965, 2.3; with rounds Narayanan et al. 2021, arXiv:2104.04473, 2.2)."""
        return (self.stages - 1) / self.steps

    def cuts(self, repeats: int) -> bool:
        """Whether a segment of so many repeats is cut into stages. One of fewer repeats than stages is not: all devices
        hold it and compute it for rows of their own, as they do embedding and head.

        Raises:
          ValueError: for one of more repeats that the stages and rounds do not divide.
        """
        parts = self.stages * self.rounds
        check(
            repeats < self.stages or repeats % parts == 0,
            f"a segment has {repeats} repeats, mesh.stage is {self.stages} and strategy PipelineParallel has rounds "
            f"{self.rounds}: a segment is cut into stages * rounds = {parts} equal parts; {self._remedy(repeats)}",
        )
        return repeats >= self.stages

    def check(self, repeats: Sequence[int]) -> None:
        """That a stack whose segments have so many repeats of their own weights can be cut.

        Raises:
          ValueError: if a segment cannot, or all are too short.
        """
        check(
            any([self.cuts(number) for number in repeats]),
            f"mesh.stage is {self.stages} and the segments of the stack have repeats {tuple(repeats)}, those with shared "
            "weights left out: at least one must have as many as there are stages, or nothing is cut; "
            f"{self._remedy(max(repeats, default=1))}",
        )

    def check_rows(self, rows: int, parts: int) -> None:
        """That so many rows, divided over `parts` groups of stages, can be cut into microbatches.

        Raises:
          ValueError: if they cannot.
        """
        check(
            rows % (self.microbatches * parts) == 0,
            f"a batch has {rows} rows, divided over {parts} groups of stages by the other axes of the mesh, and strategy "
            f"PipelineParallel has microbatches {self.microbatches}: each group cuts its rows into that many equal "
            f"microbatches; give the batch a multiple of {self.microbatches * parts} rows, or change microbatches",
        )

    def _remedy(self, repeats: int) -> str:
        fits = [(s, v) for s in range(1, repeats + 1) for v in range(1, repeats + 1) if repeats % (s * v) == 0]
        return f"(stage, rounds) that divide {repeats}: {fits[:12]}"
