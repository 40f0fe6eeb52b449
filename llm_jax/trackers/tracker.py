"""Trackers as configs: where the figures of a run go beside its metrics.jsonl."""

import abc
import dataclasses
from collections.abc import Mapping

from llm_jax.core.configclass import configclass
from llm_jax.core.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """What a tracker may use of a run."""

    directory: RunDirectory
    experiment: str
    """Flat text of the experiment."""
    resumed: bool
    """Whether the run has recorded figures before this start."""

    @property
    def name(self) -> str:
        """Of the run, which is that of its directory."""
        return self.directory.path.name


class FigureWriter(abc.ABC):
    """What a tracker writes the figures of a run with. All calls come from one thread, which is not that of training:
    they may wait for a disk or a server."""

    @abc.abstractmethod
    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """The numbers of one record.

        Args:
          kind: what they are figures of, such as 'train' or 'eval/validation'.
          step: number of updates made. Several kinds may come with one step. A resumed run repeats the steps since its
            last save.
          figures: int, float or bool by name, such as 'loss'.
        """

    def close(self) -> None:
        """Called once, after the last figures or after a call that raised."""


@configclass
class Tracker(abc.ABC):
    """Where the figures of a run go beside its metrics.jsonl. Derive a configclass from it to add one of your own.

    Only the first process opens trackers, each with its first figures and in a thread of its own. One that raises, or
    that is slower than figures come, is named once and given nothing any more; the run continues. Trackers decide
    nothing of what is computed: a run may be resumed with others.
    """

    patience = 5.0
    """Of each type: seconds that the end of training waits, at most, for what is still to be written."""

    def require(self) -> None:
        """Imports the packages that it needs. Called before the run starts.

        Raises:
          ValueError: if one is not installed; the message says what to install.
        """

    @abc.abstractmethod
    def open(self, run: TrackedRun) -> FigureWriter:
        """Opens the tracker for a run."""

    @abc.abstractmethod
    def place(self, run: RunDirectory) -> str:
        """Where the figures can be looked at, such as a command or an address, for the first lines of the log."""
