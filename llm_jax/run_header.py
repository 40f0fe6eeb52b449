"""The first lines of a run's log: model, data, devices, and locations of its records."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from llm_jax.assemble import Assembly
from llm_jax.core.run_directory import RunDirectory
from llm_jax.models import count


def header(parts: Assembly, run: RunDirectory) -> str:
    """Text with parameters, steps and tokens, origin of the weights, data, devices and mesh, and records."""
    experiment, layout = parts.experiment, parts.layout
    data, devices = experiment.data, layout.concrete.devices
    tokens = data.batch_size * data.sequence_length
    total, active = count.parameters(experiment.model), round(count.active_parameters(experiment.model))
    axes = ", ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items() if size > 1)
    amounts = _amounts(parts.dataset.manifest()["source"])
    lines = {
        experiment.name: f"{total:,} parameters" + (f", {active:,} active for a token" if active != total else ""),
        "training": f"{experiment.steps:,} steps of {tokens:,} tokens, {experiment.steps * tokens:,} in all",
        **({} if parts.fit is None else {"start": str(parts.fit)}),
        **({"frozen": "; ".join(_frozen(parts))} if experiment.frozen else {}),
        "data": "; ".join([type(data.source).__name__, *amounts, *_records(parts)]),
        "devices": f"{devices.size} x {devices.flat[0].device_kind}, processes: {jax.process_count()}, "
        f"mesh: {axes or 'one device'}",
        "log": ", ".join([str(run.metrics_file), *(tracker.place(run) for tracker in experiment.trackers)]),
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


def _frozen(parts: Assembly) -> Iterator[str]:
    """Parameters and origin of each frozen model."""
    for name, model in parts.experiment.frozen_models.items():
        origin = f", {parts.frozen[name]}" if name in parts.frozen else ""
        yield f"{name}, {count.parameters(model):,} parameters{origin}"


def _records(parts: Assembly) -> Iterator[str]:
    """Number of structured records of each part, and of those that are not used as they are."""
    for key, value in parts.dataset.record_counts().items():
        part, _, name = key.partition("/")
        if value or name == "records":
            yield f"{value:,} {name} in {part}"


def _amounts(manifest: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """Number of tokens of each part of each source, if it is known."""
    for key, value in manifest.items():
        if isinstance(value, Mapping):
            yield from _amounts(value, f"{name} {key}".strip())
        elif key == "tokens" and isinstance(value, int):
            yield f"{value:,} tokens in {name}"
