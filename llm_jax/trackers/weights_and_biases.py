"""Weights & Biases: the figures of a run at wandb.ai or a server of one's own (pip extra `wandb`)."""

import importlib
import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_jax.core.checks import check, shortened
from llm_jax.core.config_text import saved_fields
from llm_jax.core.configclass import configclass
from llm_jax.core.files import write_atomically
from llm_jax.core.paths import is_object
from llm_jax.core.run_directory import RunDirectory
from llm_jax.trackers.tracker import FigureWriter, TrackedRun, Tracker

_ID = "id.txt"
"""In the folder `wandb` of the run directory: the id of the run there."""


@configclass
class WandbConfig(Tracker):
    """A run at Weights & Biases, with metrics '<kind>/<name>' and the fields of the experiment as its config.

    A resumed run continues the same one, by an id in the run directory. Of a step that is made again the figures that
    came first stay. Log in before, by `wandb login` or WANDB_API_KEY; wandb's other variables, such as WANDB_MODE,
    count too.
    """

    patience = 60.0  # for the upload

    project: str = "llm_jax"
    entity: str | None = None
    """User or team; None: the default of who is logged in."""
    group: str | None = None
    """Under which runs are shown together, such as the seeds of a variant."""

    def __post_init__(self):
        check(self.project != "", "project is '': set it to the name of the project at wandb")

    def require(self) -> None:
        """See `Tracker`."""
        try:
            importlib.import_module("wandb")
        except ImportError as error:
            raise ValueError(
                f"a tracker is WandbConfig, and wandb cannot be imported ({error}): install it with `pip install "
                "'llm-jax[wandb]'`, or remove the tracker"
            ) from error

    def open(self, run: TrackedRun) -> FigureWriter:
        return _WandbRun(self, run)

    def place(self, run: RunDirectory) -> str:
        return f"wandb project {'/'.join(filter(None, [self.entity, self.project]))}"


class _WandbRun(FigureWriter):
    def __init__(self, config: WandbConfig, run: TrackedRun):
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            name=run.name,
            id=_kept_id(run.directory.path / "wandb"),
            resume="allow",
            dir=None if is_object(run.directory.path) else str(run.directory.path),  # for files of wandb's own
            config=_values(run.experiment),
            allow_val_change=True,  # a resumed run may differ in some fields
            # The display of the run is redrawn in place, which a copy of the terminal would show line by line.
            settings=wandb.Settings(console="off"),
        )

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in figures.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def _kept_id(folder: Path) -> str:
    """The id that an earlier start of the run has left in a folder, or a new one, which is left there."""
    file = folder / _ID
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, uuid.uuid4().hex[:16])
    found = file.read_text(encoding="utf-8")
    check(
        re.fullmatch(r"[0-9a-f]{16}", found) is not None,
        f"{file} holds {shortened(found)}, which is not the id of a run at wandb: restore it, or delete it to begin a "
        "new run there",
    )
    return found


def _values(experiment: str) -> dict[str, Any]:
    """Value of each field of a flat text, and the type of each config, by path."""
    fields = {path or "experiment": text for path, text in saved_fields(experiment).items()}
    return {path: _value(text) for path, text in fields.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # the name of a type
