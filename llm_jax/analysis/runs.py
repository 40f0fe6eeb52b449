"""A run directory as arrays: settings, card, curves, baselines and samples of one run."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core import paths
from llm_jax.core.checks import check
from llm_jax.core.run_directory import RunDirectory

Curve = dict[str, np.ndarray]
"""Columns of one kind of record, float64 [records] each, in the order of steps. nan if a record lacks the field."""

_EVAL = "eval/"
_AVERAGED = ("loss", "bits_per_byte")
_BASELINE = "baseline/"


@dataclasses.dataclass(frozen=True)
class LossUnit:
    """Unit in which held-out losses are compared."""

    column: str
    """Name of the column in the evaluation records."""
    name: str
    title: str


NATS = LossUnit("loss", "nats per token", "held-out loss")
BITS = LossUnit("bits_per_byte", "bits per byte", "held-out bits per byte")


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a run directory, from `load_run`."""

    name: str
    """Name of the run's folder."""
    path: Path
    """The run's folder."""
    experiment: str
    """Resolved experiment as flat text, one `path = value` per line."""
    card: dict[str, Any]
    """card.json: the list `starts`, one entry for each start of the run; empty without a card."""
    train: Curve
    """Columns of the train records; empty before the first record."""
    evals: dict[str, Curve]
    """Columns of the evaluation records, by name of the evaluation set. The mean over the sets `<part>/<source>` of a
    mixture is named `<part>`, see `means`."""
    baselines: dict[str, float]
    """Bits per byte of other compressors on the run's held-out text, by name."""
    seconds: float
    """Time from the first record to the last, including pauses between restarts; 0 without records."""
    parameter_norms: Curve
    """Gradient norm of each parameter by its path, and 'step', if the run recorded them (`GradientNormsConfig`)."""
    samples: tuple[Path, ...]
    """Sample files, in the order of steps."""
    means: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """For each mean in `evals`, the weight of each set in it."""
    damage: tuple[str, ...] = ()
    """Damaged parts of files in the folder, one message for each."""

    @property
    def fields(self) -> dict[str, str]:
        """Text of the experiment's fields by path. The type of the experiment has the path ''."""
        lines = (line.partition("= ") for line in self.experiment.splitlines() if line.strip())
        return {path.strip(): value.strip() for path, _, value in lines}

    @property
    def mixture(self) -> dict[str, float]:
        """Weights of a mixture's sources at the end of training, by name; empty for a single source."""
        found, fields, source = {}, self.fields, "data.source.sources.0"
        while f"{source}.name" in fields:
            weights = [json.loads(fields.get(f"{source}.weight", "1.0"))]
            weights += [weight for _, weight in json.loads(fields.get(f"{source}.changes", "[]"))]
            found[json.loads(fields[f"{source}.name"])] = weights[-1]
            source = f"data.source.sources.{len(found)}"
        return found

    @property
    def tokenizer(self) -> str | None:
        """Digest of the tokenizer; None if the run recorded none."""
        data = self.facts.get("data")
        return data.get("tokenizer") if isinstance(data, dict) else None

    @property
    def facts(self) -> dict[str, Any]:
        """The card's entry for the last start of the run; empty without a card."""
        starts = self.card.get("starts", [])
        return starts[-1] if starts else {}


def load_run(path: str | Path) -> Run:
    """Reads a run directory. A run without records has empty curves.

    The experiment is read as text, so that runs of other versions of the code can be read.

    Raises:
      ValueError: if `path` is not a run directory.
    """
    path = paths.at(path)
    experiment = path / "experiment.txt"
    check(path.is_dir(), f"{path} is not a run directory: there is no such folder; a run lies at runs/<name>")
    check(experiment.is_file(), f"{path} is not a run directory: it has no experiment.txt; a run lies at runs/<name>")
    directory = RunDirectory(path)
    records = list(directory.records())
    starts, _ = directory.read_card()
    times = [record["time"] for record in records if "time" in record]
    run = Run(
        name=path.resolve().name,
        path=path,
        experiment=directory.experiment_text(),
        card={"starts": starts} if starts else {},
        train=_curve(record for record in records if record["kind"] == "train"),
        evals=_evals(records),
        baselines=_baselines(records),
        seconds=max(times) - min(times) if times else 0.0,
        parameter_norms=_curve(record for record in records if record["kind"] == "gradient_norms"),
        samples=_samples(directory.samples),
        damage=tuple(directory.damage()),
    )
    parts = dict.fromkeys(name.partition("/")[0] for name in run.evals if "/" in name)
    expected = [f"{part}/{name}" for part in parts for name in run.mixture]
    return _with_means(run, run.mixture, list(dict.fromkeys([*run.evals, *expected])))


def load_runs(places: Sequence[str | Path]) -> list[Run]:
    """Reads several run directories by `load_run`, and makes them `comparable`."""
    return comparable([load_run(place) for place in places])


def comparable(runs: Sequence[Run]) -> list[Run]:
    """The runs with comparable means over the sets of a mixture. The means are over the sets that all runs with an
    evaluation have, with the weights of the first of these runs."""
    evaluated = [run for run in runs if run.evals]
    if all(run.means == evaluated[0].means for run in evaluated):
        return list(runs)
    shared = [name for name in evaluated[0].evals if all(name in run.evals for run in evaluated)]
    return [_with_means(run, evaluated[0].mixture, shared) for run in runs]


def loss_unit(runs: Sequence[Run]) -> LossUnit:
    """Nats per token if all runs have the same tokenizer, otherwise bits per byte."""
    digests = [run.tokenizer for run in runs]
    if None in digests:
        digests = [tuple(line for line in run.fields.items() if line[0].startswith("tokenizer")) for run in runs]
    return NATS if len(set(digests)) < 2 else BITS


def last(curve: Curve, column: str) -> float | None:
    """Last value in a column that is not nan; None if there is none."""
    values = curve.get(column, np.empty(0))
    values = values[~np.isnan(values)]
    return float(values[-1]) if len(values) else None


def median(curve: Curve, column: str) -> float | None:
    """Median of the finite values of a column; None if there is none."""
    values = curve.get(column, np.empty(0))
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def held_out_set(runs: Sequence[Run]) -> str | None:
    """The evaluation set by which the runs are compared, of the sets with a loss that all runs with an evaluation have:
    test, else validation, else the first by name; None if there is none. A mixture is compared only by its mean, not by
    the set of a single source."""
    names = [{name for name, curve in run.evals.items() if "loss" in curve} for run in runs if run.evals]
    shared = set.intersection(*names) if names else set()
    whole = [name for name in shared if "/" not in name]
    return min(whole, key=lambda name: (name != "test", name != "validation", name), default=None)


def described(runs: Sequence[Run], name: str) -> str:
    """An evaluation set of the runs in Markdown. For a mean, with its sets and their weights."""
    shares = next((run.means[name] for run in runs if name in run.means), {})
    listed = ", ".join(f"{share:.3g} of `{one}`" for one, share in shares.items())
    return f"`{name}`" + f" (the mean, {listed})" * bool(listed)


def labels(runs: Sequence[Run]) -> list[str]:
    """Names that distinguish the runs: the shortest end of each path that no other run has.

    Raises:
      ValueError: if a run directory is given twice.
    """
    parts = [run.path.resolve().parts for run in runs]
    twice = [str(run.path) for index, run in enumerate(runs) if parts[index] in parts[:index]]
    check(not twice, f"{', '.join(twice)} is given more than once: name each run directory once")
    return [_shortest_end(own, [other for other in parts if other != own]) for own in parts]


def setting(run: Run, path: str) -> str:
    """A field of the experiment for display: strings without quotes, types without their module."""
    text = run.fields.get(path, "-")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text.rpartition(".")[2]
    return value if isinstance(value, str) else text


def differences(runs: Sequence[Run], ignore: Sequence[str] = ()) -> list[str]:
    """Paths at which the experiments of the runs differ, except those in `ignore`."""
    fields = dict.fromkeys(path for run in runs for path in run.fields if path not in ignore)
    return [path for path in fields if len({run.fields.get(path) for run in runs}) > 1]


def _shortest_end(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    lengths = range(1, len(own) + 1)
    length = next((n for n in lengths if all(other[-n:] != own[-n:] for other in others)), len(own))
    return str(Path(*own[-length:]))


def swept(runs: Sequence[Run]) -> tuple[str, list[float]] | None:
    """The field of a sweep over one number, with its value in each run. It is the only field in which the experiments
    differ, besides seed and name, or the first of several that change together. None if there is no such field or it
    has fewer than three values."""
    changed = differences(runs, ignore=("name", "seed"))
    found = [[_plain_number(run.fields.get(path)) for run in runs] for path in changed]
    columns = [[value for value in column if value is not None] for column in found]
    if not columns or any(len(column) < len(runs) for column in columns):
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


def _with_means(run: Run, weights: Mapping[str, float], sets: Sequence[str]) -> Run:
    """The run with a mean over the sets of a mixture in `sets` for each part, weighted by `weights` of their sources.
    If no source of the part has a weight, all weights are equal."""
    evals = {name: curve for name, curve in run.evals.items() if name not in run.means}
    means = {}
    for part in dict.fromkeys(name.partition("/")[0] for name in sets if "/" in name):
        own = {name: weights.get(name.partition("/")[2], 0.0) for name in sets if name.startswith(f"{part}/")}
        own = {name: weight for name, weight in own.items() if weight} or dict.fromkeys(own, 1.0)
        if part not in evals and all(name in evals for name in own):
            means[part] = {name: weight / sum(own.values()) for name, weight in own.items()}
            evals[part] = _mean([evals[name] for name in own], list(means[part].values()))
    return dataclasses.replace(run, evals=evals, means=means)


def _mean(curves: Sequence[Curve], shares: Sequence[float]) -> Curve:
    """Weighted mean of curves, at the steps that all of them have."""
    steps = functools.reduce(np.intersect1d, [curve["step"] for curve in curves])
    mean = {"step": steps}
    for column in _AVERAGED:
        if all(column in curve for curve in curves):
            values = [curve[column][np.isin(curve["step"], steps)] for curve in curves]
            mean[column] = np.average(values, axis=0, weights=shares)
    return mean


def _evals(records: list[dict]) -> dict[str, Curve]:
    sets = sorted({record["kind"].removeprefix(_EVAL) for record in records if record["kind"].startswith(_EVAL)})
    return {name: _curve(record for record in records if record["kind"] == _EVAL + name) for name in sets}


def _baselines(records: list[dict]) -> dict[str, float]:
    return {
        record["kind"].removeprefix(_BASELINE): record["bits_per_byte"]
        for record in records
        if record["kind"].startswith(_BASELINE) and _is_number(record.get("bits_per_byte"))
    }


def _samples(folder: Path) -> tuple[Path, ...]:
    named = [file for file in folder.glob("step_*.md") if file.stem.removeprefix("step_").isdecimal()]
    return tuple(sorted(named, key=lambda file: int(file.stem.removeprefix("step_"))))


def _curve(records: Iterable[dict]) -> Curve:
    records = list(records)
    names = dict.fromkeys(name for record in records for name, value in record.items() if _is_number(value))
    return {name: np.array([_number(record.get(name)) for record in records]) for name in names}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else np.nan
