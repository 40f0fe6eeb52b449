"""Synthetic run directories, written the way a run writes them."""

import dataclasses
import json
from pathlib import Path

import pytest

from llm_jax.core.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class AdamW:
    peak_lr: float = 1e-3
    decay: float = 0.1


@dataclasses.dataclass(frozen=True)
class Lion:
    peak_lr: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Experiment:
    name: str = "toy"
    seed: int = 0
    steps: int = 100
    optimizer: AdamW | Lion = AdamW()
    layers: tuple[int, ...] = (1, 2)


@pytest.fixture
def make_run(tmp_path):
    """make_run(name, records, card=..., samples=..., experiment=...) -> path of a run directory."""

    def make(name="toy", records=(), card=None, samples=None, experiment=None) -> Path:
        directory = RunDirectory(tmp_path / name)
        directory.open(experiment or Experiment(name=name))
        directory.metrics_file.write_text("".join(json.dumps(record) + "\n" for record in records))
        if card is not None:
            directory.write_card(**card)
        for step, text in (samples or {}).items():
            directory.samples.mkdir(exist_ok=True)
            (directory.samples / f"step_{step:06d}.md").write_text(text, encoding="utf-8")
        return directory.path

    return make


@pytest.fixture
def train_record():
    """train_record(step, loss, **fields): 1,000 tokens and half a second per step, 2,000 tokens/s."""

    def make(step: int, loss: float, **fields) -> dict:
        numbers = {"learning_rate": 1e-3, "tokens_per_second": 2000.0, "tokens": 1000 * step}
        return {"kind": "train", "step": step, "time": 100 + step / 2, "loss": loss, **numbers, **fields}

    return make


@pytest.fixture
def eval_record():
    """eval_record(set, step, loss, **fields)."""

    def make(name: str, step: int, loss: float, **fields) -> dict:
        return {"kind": f"eval/{name}", "step": step, "time": 100 + step / 2, "set": name, "loss": loss, **fields}

    return make


@pytest.fixture
def experiments():
    """The toy experiment types, for variants."""
    return {"Experiment": Experiment, "AdamW": AdamW, "Lion": Lion}
