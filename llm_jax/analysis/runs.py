"""A run directory as arrays: settings, card, curves, baselines and samples of one run."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.checks import check
from llm_jax.core.run_directory import RunDirectory

Curve = dict[str, np.ndarray]
"""Columns of one kind of record, float64 [records] each, in the order of steps; nan where a record lacks the field."""

_EVAL = "eval/"
_BASELINE = "baseline/"


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run left behind. `load_run` makes it."""

    name: str
    """Name of the run's folder."""
    path: Path
    """The run's folder."""
    experiment: str
    """Resolved experiment as flat text, one `path = value` per line."""
    card: dict[str, Any]
    """card.json: the list `starts`, one entry for each start of the run; empty if there is none."""
    train: Curve
    """Columns of the train records; empty before the first."""
    evals: dict[str, Curve]
    """Columns of the evaluation records, by name of the evaluation set."""
    baselines: dict[str, float]
    """Bits per byte of other compressors on the run's held-out text, by name."""
    seconds: float
    """Time from the first record to the last, pauses between restarts included; 0 without records."""
    samples: tuple[Path, ...]
    """Sample files, in the order of steps."""

    @property
    def fields(self) -> dict[str, str]:
        """Paths of the experiment's fields and their text; the experiment's own type has the path ''."""
        lines = (line.partition("= ") for line in self.experiment.splitlines() if line.strip())
        return {path.strip(): value.strip() for path, _, value in lines}

    @property
    def facts(self) -> dict[str, Any]:
        """The card's entry for the last start of the run; empty if there is none."""
        starts = self.card.get("starts", [])
        return starts[-1] if starts else {}


def load_run(path: Path) -> Run:
    """Reads a run directory; a run that has not recorded anything yet has empty curves.

    The experiment is read as text, so that runs of other versions of the code can be read too.

    Raises:
      ValueError: if `path` is not a run directory.
    """
    path = Path(path)
    experiment = path / "experiment.txt"
    check(path.is_dir(), f"{path} is not a run directory: there is no such folder; a run lies at runs/<name>")
    check(experiment.is_file(), f"{path} is not a run directory: it has no experiment.txt; a run lies at runs/<name>")
    directory = RunDirectory(path)
    records = list(directory.records())
    times = [record["time"] for record in records if "time" in record]
    return Run(
        name=path.resolve().name,
        path=path,
        experiment=experiment.read_text(encoding="utf-8"),
        card=directory.card(),
        train=_curve(record for record in records if record["kind"] == "train"),
        evals=_evals(records),
        baselines=_baselines(records),
        seconds=max(times) - min(times) if times else 0.0,
        samples=tuple(sorted(directory.samples.glob("step_*.md"), key=lambda file: (len(file.name), file.name))),
    )


def last(curve: Curve, column: str) -> float | None:
    """Last value recorded in a column; None if there is none."""
    values = curve.get(column, np.empty(0))
    values = values[~np.isnan(values)]
    return float(values[-1]) if len(values) else None


def median(curve: Curve, column: str) -> float | None:
    """Median of the finite values of a column; None if there is none."""
    values = curve.get(column, np.empty(0))
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def held_out_set(runs: Sequence[Run]) -> str | None:
    """The evaluation set that speaks for the runs: test, else validation, else the first by name, of those that every
    run with an evaluation has; None if there is none."""
    names = [set(run.evals) for run in runs if run.evals]
    shared = set.intersection(*names) if names else set()
    return min(shared, key=lambda name: (name != "test", name != "validation", name), default=None)


def labels(runs: Sequence[Run]) -> list[str]:
    """Names that distinguish the runs: of each the shortest end of its path that no other run shares.

    Raises:
      ValueError: if one run directory is given twice.
    """
    parts = [run.path.resolve().parts for run in runs]
    twice = [str(run.path) for index, run in enumerate(runs) if parts[index] in parts[:index]]
    check(not twice, f"{', '.join(twice)} is given more than once: name each run directory once")
    return [_shortest_end(own, [other for other in parts if other != own]) for own in parts]


def setting(run: Run, path: str) -> str:
    """A field of the experiment as a reader writes it: strings without quotes, types without their module."""
    text = run.fields.get(path, "-")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text.rpartition(".")[2]
    return value if isinstance(value, str) else text


def differences(runs: Sequence[Run], ignore: Sequence[str] = ()) -> list[str]:
    """Paths at which the experiments of the runs differ, but for those in `ignore`."""
    paths = dict.fromkeys(path for run in runs for path in run.fields if path not in ignore)
    return [path for path in paths if len({run.fields.get(path) for run in runs}) > 1]


def _shortest_end(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    lengths = range(1, len(own) + 1)
    length = next((n for n in lengths if all(other[-n:] != own[-n:] for other in others)), len(own))
    return str(Path(*own[-length:]))


def swept(runs: Sequence[Run]) -> tuple[str, list[float]] | None:
    """The field of a sweep over one number, with its value in each run: the only field but seed and name in which the
    experiments differ, or the first of several that change together; None for other runs and fewer than three values.
    """
    changed = differences(runs, ignore=("name", "seed"))
    columns = [[_plain_number(run.fields.get(path)) for run in runs] for path in changed]
    if not columns or any(value is None for column in columns for value in column):
        return None
    first = columns[0]
    together = all(len(set(zip(first, other, strict=True))) == len(set(first)) == len(set(other)) for other in columns)
    return (changed[0], first) if together and len(set(first)) > 2 else None


def _plain_number(text: str | None) -> float | None:
    try:
        value = json.loads(text or "null")
    except json.JSONDecodeError:
        return None
    return float(value) if _is_number(value) and np.isfinite(value) else None


def _evals(records: list[dict]) -> dict[str, Curve]:
    sets = sorted({record["kind"].removeprefix(_EVAL) for record in records if record["kind"].startswith(_EVAL)})
    return {name: _curve(record for record in records if record["kind"] == _EVAL + name) for name in sets}


def _baselines(records: list[dict]) -> dict[str, float]:
    return {
        record["kind"].removeprefix(_BASELINE): record["bits_per_byte"]
        for record in records
        if record["kind"].startswith(_BASELINE)
    }


def _curve(records: Iterable[dict]) -> Curve:
    records = list(records)
    names = dict.fromkeys(name for record in records for name, value in record.items() if _is_number(value))
    return {name: np.array([_number(record.get(name)) for record in records]) for name in names}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else np.nan
