"""The host never waits for the update just dispatched: the hooks of a real run, between updates that take long."""

import contextlib
import dataclasses
import io
import time
import types

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from llm_jax.assemble import Assembly, assemble
from llm_jax.core.configclass import configclass
from llm_jax.core.run_directory import RunDirectory
from llm_jax.data import ModularAdditionConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.hosts.process_group import Hosts
from llm_jax.optim import WSD, AdamWConfig
from llm_jax.run_hooks import attached
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import DataParallel, ShardingConfig
from llm_jax.trackers import FigureWriter, Tracker
from llm_jax.train import GradientNormsConfig, hooks
from llm_jax.train.display import Display
from llm_jax.train.loop import Hook, train
from llm_jax.train.pace import Pace
from llm_jax.train.step import StepConfig
from tests.helpers import tiny_run
from tests.helpers.tiny import tiny_gpt2

STEPS = 5


class Watch(Hook):
    """Notes for each update whether the next one, dispatched already, still ran when all hooks had its figures."""

    def __init__(self, step):
        self._step, self._reports, self.ahead = step, [], {}

    def step(self, state, batch):
        state, report = self._step(state, batch)
        self._reports.append(report)
        return state, report

    def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
        if step < len(self._reports):
            self.ahead[step] = not self._reports[step].finite.is_ready()


@configclass
class SlowConfig(Tracker):
    """Takes as long for each record as an update does."""

    def open(self, run):
        return SlowWriter()

    def place(self, run):
        return "nowhere"


class SlowWriter(FigureWriter):
    def write(self, kind, step, figures):
        time.sleep(0.3)


def _slowed(update):
    """`update` after a few tenths of a second of work: Python's callbacks would make the CPU's client wait for it."""

    def slow(state, batch):
        work = jax.lax.fori_loop(0, 10_000, lambda _, x: jnp.sin(x @ x), jnp.full((64, 64), 0.01))
        return update(state.replace(step=state.step + (0 * work[0, 0]).astype(jnp.int32)), batch)

    return slow


def _parts(folder, sharding: ShardingConfig) -> Assembly:
    made = tiny_run.experiment(folder, steps=STEPS, log_every=1, evaluations=(PerplexityConfig(every=100),))
    made = tiny_run.with_source(made, ModularAdditionConfig(5))
    optimizer = AdamWConfig(peak_lr=1e-2, schedule=WSD(warmup_steps=2, decay_fraction=0.4))
    changes = {"model": tiny_gpt2(layers=1), "update": StepConfig(), "optimizer": optimizer, "sharding": sharding}
    changes["hooks"] = (GradientNormsConfig(every=1),)
    return assemble(dataclasses.replace(made, tokenizer=None, **changes), folder / "cache")


@pytest.mark.parametrize("use_pmap", [False, True])
def test_all_hooks_see_the_figures_of_an_update_while_the_next_one_runs(tmp_path, use_pmap):
    parts = _parts(tmp_path, ShardingConfig(MeshConfig(data=1), DataParallel(use_pmap)))
    run, experiment = RunDirectory(tmp_path / "run"), parts.experiment
    run.open(experiment)

    update = parts.programs.step
    mapped_update = dataclasses.replace(update, update=_slowed(update.update)) if use_pmap else None
    watch = Watch(mapped_update or jax.jit(_slowed(update), donate_argnums=0))
    iterator = parts.dataset.train_iterator(0, *parts.share)
    console = Console(file=io.StringIO(), width=200)
    with (
        parts.programs.activated(),
        contextlib.closing(hooks.Recorder(run, (SlowConfig(),))) as recorder,
        Display(0, STEPS, 1, console) as display,
        hooks.StopOnSignal() as signals,
    ):
        saver = types.SimpleNamespace(save=lambda *_: None, wait=lambda: None)
        begin = types.SimpleNamespace(step=0, loop={"seconds": 0.0})
        made = attached(parts, run, saver, recorder, display, signals, begin)
        made = [hook for hook in made if not isinstance(hook, hooks.Evaluate)]  # due at the end
        pace = Pace(Hosts(), recorder.write, display.print, 1)
        batches = pace.timed(map(parts.place, iterator))
        train(parts.initial_state(), watch.step, batches, [pace, *made, watch], 0, STEPS)
    # Not all: a busy machine may hold up the host itself.
    assert len(watch.ahead) == STEPS - 1 and sum(watch.ahead.values()) >= 2, watch.ahead
    records = {kind: [r for r in run.records() if r["kind"] == kind] for kind in ("train", "gradient_norms")}
    for train_record, norms in zip(*records.values(), strict=True):
        parts_of = [value for name, value in norms.items() if "/" in name]
        assert sum(norm**2 for norm in parts_of) ** 0.5 == pytest.approx(train_record["gradient_norm"], rel=1e-6)
    rates = {record["step"]: record["learning_rate"] for record in run.records() if record["kind"] == "train"}
    assert rates == pytest.approx({1: 1e-2 / 3, 2: 2e-2 / 3, 3: 1e-2, 4: 1e-2, 5: 1e-2 * (1 - 0.5**0.5)}, rel=1e-6)
