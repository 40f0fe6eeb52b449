"""A branch: a new run that starts with the whole state of another run at one of its checkpoints."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Self

from llm_jax.checkpoints import restore
from llm_jax.checkpoints.restore import Restored
from llm_jax.core import config_text, paths
from llm_jax.core.checks import check, given
from llm_jax.core.run_directory import RunDirectory
from llm_jax.experiment import Experiment

_KEPT = ("seed", "tokenizer", "data")
"""Fields that determine the batch of each step. `data.read_ahead` does not affect it."""


@dataclasses.dataclass(frozen=True)
class Branch:
    """The checkpoint with which a new run starts: weights, optimizer state, moving average, step and data position."""

    run: RunDirectory
    step: int
    experiment: str
    """Flat text of the experiment that wrote it."""
    data: str | None
    """Digest of its training data."""

    @classmethod
    def named(cls, name: str, runs: Path) -> Self:
        """Finds a checkpoint by name.

        Args:
          name: RUN or RUN:STEP, where RUN is a run directory or the name of one in `runs`. Without STEP: the newest.

        Raises:
          ValueError: if there is no such run or checkpoint.
        """
        run, _, step = name.rpartition(":")
        if not run or not step.isdecimal():
            run, step = name, ""
        found = [path for path in (paths.at(run), runs / run) if path.is_dir()]
        check(bool(found), f"--from {name}: neither {run} nor {runs / run} is a run directory")
        directory = RunDirectory(found[0])
        records = restore.readable_records(directory.checkpoints)
        chosen = int(step) if step else max(records, default=None)
        if chosen is None or chosen not in records:
            of_step = "" if chosen is None else f" of step {chosen}"
            raise ValueError(
                f"--from {name}: {directory.path} has no checkpoint{of_step} that can be read: choose one of the steps "
                f"{sorted(records)}"
            )
        return cls(directory, chosen, records[chosen].run.experiment, records[chosen].run.data)

    @property
    def source(self) -> dict[str, Any]:
        """The entry about the branch on the card and in the checkpoints of the new run."""
        digest = hashlib.sha256(self.experiment.encode()).hexdigest()[:16]
        return {"run": str(self.run.path.resolve()), "step": self.step, "experiment_digest": digest}

    def changes(self, experiment: Experiment) -> list[str]:
        """How `experiment`, that of the new run, differs from that of the checkpoint, one line for each field.

        Raises:
          ValueError: if the data would differ, so that the data position is invalid, or if no steps would remain.
        """
        found = config_text.differences(config_text.saved_fields(self.experiment), config_text.flatten(experiment))
        moved = [line for line in found if _decides_data(line.partition(":")[0])]
        check(
            not moved,
            f"--from {self}: {'; '.join(moved)}: a branch continues at the same position of the same data, so seed, "
            "tokenizer and data must not change. To use other data, start from the weights alone, by `llm-jax "
            "convert` and --start",
        )
        check(
            experiment.steps > self.step,
            f"--from {self}: steps is {experiment.steps}, and {self.step} are complete: steps counts from the start "
            "of the first run; set it higher",
        )
        return found

    def restored(self, abstract: Any, tokenizer_digest: str) -> Restored:
        """Reads the state.

        Raises:
          ValueError: if the checkpoint is damaged, or its state does not match the new experiment.
        """
        found = restore.restore_state(self.run.checkpoints, abstract, tokenizer_digest, self.step)
        return given(found, f"--from {self}: the checkpoint was deleted; choose another")

    def __str__(self) -> str:
        return f"{self.run.path}:{self.step}"


def _decides_data(path: str) -> bool:
    return path.split(".")[0] in _KEPT and path != "data.read_ahead"
