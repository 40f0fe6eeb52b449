"""What happens around the updates."""

import errno
import io
import json
import os
import signal
import time

import jax.numpy as jnp
import pytest
from rich.console import Console

from llm_jax.core.configclass import configclass
from llm_jax.core.run_directory import RunDirectory
from llm_jax.hosts.process_group import ProcessGroup
from llm_jax.trackers import FigureWriter, Tracker
from llm_jax.train import hooks
from llm_jax.train.loop import Stop
from tests.hosts.connections import connections, everywhere


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


@pytest.fixture
def recorder(run):
    recorder = hooks.Recorder(run)
    yield recorder
    recorder.close()


@pytest.fixture
def display():
    return hooks.Display(0, 10, every=5, console=Console(file=io.StringIO(), width=200))


def _shown(display) -> str:
    display._aside.close()
    return display._console.file.getvalue()


class Kept(FigureWriter):
    """Keeps what it is given."""

    def __init__(self, given):
        self._given = given

    def write(self, kind, step, figures):
        self._given.append((kind, step, dict(figures)))


@configclass
class KeepingConfig(Tracker):
    """Records the metrics that it receives, by the name of the run."""

    def open(self, run):
        OPENED.append(run)
        return Kept(GIVEN.setdefault(run.name, []))

    def place(self, run):
        return "memory"


OPENED: list = []
GIVEN: dict = {}


def test_records_can_be_read_at_once_and_their_numbers_go_to_trackers(run):
    recorder = hooks.Recorder(run, (KeepingConfig(),), "name = 1")
    recorder.write("train", 3, loss=1.5, learning_rate=1e-3, note="a word")
    recorder.write("event", 3, text="saved")
    records = list(run.records())
    assert [(record["kind"], record["step"]) for record in records] == [("train", 3), ("event", 3)]
    assert records[0]["loss"] == 1.5 and records[0]["time"] > 1e9
    recorder.close()
    assert GIVEN[run.path.name] == [("train", 3, {"loss": 1.5, "learning_rate": 1e-3})]
    again = hooks.Recorder(run, (KeepingConfig(),), "name = 1")
    again.write("train", 4, loss=1.0)
    again.close()
    assert [(one.directory, one.experiment, one.resumed) for one in OPENED] == [
        (run, "name = 1", False),
        (run, "name = 1", True),
    ]


def test_the_first_record_after_a_crash_is_not_lost_with_the_line_that_was_cut(run):
    whole = json.dumps({"kind": "train", "step": 1, "time": 0.0, "loss": 2.0}) + "\n"
    run.metrics_file.write_text(whole + whole.replace('"step": 1', '"step": 2')[:20])
    recorder = hooks.Recorder(run)
    recorder.write("train", 2, loss=1.0)
    recorder.write("train", 3, loss=0.5)
    recorder.close()
    assert [record["step"] for record in run.records()] == [1, 2, 3]


def test_rates_are_tokens_and_flops_by_time():
    known = hooks.Throughput(tokens_per_step=100, flops_per_token=6.0, peak_flops=1200.0)
    assert known.rates(seconds=4.0, steps=2) == {"tokens_per_second": 50.0, "mfu": 0.25}
    unknown = hooks.Throughput(tokens_per_step=100, flops_per_token=6.0, peak_flops=None)
    assert unknown.rates(seconds=2.0) == {"tokens_per_second": 50.0}


def test_the_first_update_of_a_start_is_not_in_the_rates(run, recorder, display):
    log = hooks.Log(recorder, display, hooks.Throughput(100, 1.0, 1e3), every=1, total_seconds=7.0)
    for step, seconds in ((1, 50.0), (2, 0.5)):
        log.on_metrics(step, {"loss": 1.0, "learning_rate": 0.1, "seconds": seconds})
    first, second = run.records()
    assert not {"tokens_per_second", "mfu"} & first.keys() and first["seconds"] == 57.0
    assert (second["tokens_per_second"], second["seconds"]) == (200.0, 57.5)
    assert "tokens/s" not in _shown(display).splitlines()[0]


def test_the_log_records_every_few_steps_with_the_rate_over_them(run, recorder, display):
    throughput = hooks.Throughput(100, 1.0, None)
    log = hooks.Log(recorder, display, throughput, every=5, total_seconds=7.0)
    for step in range(1, 11):
        figures = {"loss": float(step), "gradient_norm": 1.0, "learning_rate": 0.1 * step}
        log.on_metrics(step, figures | {"seconds": 3.0 if step == 1 else 0.5 if step <= 5 else 1.0})
    records = list(run.records())
    assert [record["step"] for record in records] == [5, 10]
    assert [record["tokens_per_second"] for record in records] == [200.0, 100.0]
    assert [record["tokens"] for record in records] == [500, 1000]
    assert [record["seconds"] for record in records] == [12.0, 17.0]
    assert [record["learning_rate"] for record in records] == pytest.approx([0.5, 1.0])
    steps = [line.split("  ")[0] for line in _shown(display).splitlines()]
    assert steps == ["step 1/10", "step 5/10", "step 10/10"]
    assert "MFU" not in _shown(display)


def _evaluate(recorder, display, results, last):
    compared = lambda found: {"validation/loss": found["validation"]["loss"]}  # noqa: E731
    return hooks.Evaluate(
        lambda params, step: results(params, step),
        compared,
        lambda state: f"weights {state}",
        5,
        last,
        recorder,
        display,
    )


@pytest.mark.parametrize(("last", "steps"), [(10, [5, 10]), (12, [5, 10, 12])])
def test_an_evaluation_comes_every_few_steps_and_once_at_the_end(run, recorder, display, last, steps):
    given = []

    def results(params, step):
        given.append((params, step))
        return {"validation": {"loss": 1.5 * step}, "copying": {"error": jnp.float32(0.25), "block/error": 1}}

    held_out = _evaluate(recorder, display, results, last)
    for step in range(1, last + 1):
        if held_out.due(step):
            held_out.on_step(step, step)
    assert given == [(f"weights {step}", step) for step in steps]
    losses = [record for record in run.records() if record["kind"] == "eval/validation"]
    assert [(record["step"], record["loss"]) for record in losses] == [(step, 1.5 * step) for step in steps]
    others = [record for record in run.records() if record["kind"] == "eval/copying"]
    assert [(record["error"], record["block/error"]) for record in others] == [(0.25, 1.0)] * len(steps)
    assert held_out.metrics == {"validation/loss": 1.5 * last} and held_out.step == last
    assert f"step {last}  copying: error 0.2500\n" in _shown(display)


def test_samples_that_cannot_be_written_cost_a_message():
    def write(step: int, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = []
    hooks.Sample(lambda weights: "text", lambda state: state, 5, 10, write, said.append).on_step(5, None)
    assert said == ["the samples of step 5 cannot be written ([Errno 28] No space left on device); the run continues"]


def test_a_metric_that_is_no_number_is_refused(recorder, display):
    held_out = _evaluate(recorder, display, lambda params, step: {"validation": {"loss": [1.0]}}, 5)
    with pytest.raises(ValueError, match="returned validation/loss with type list: it must be a number"):
        held_out.on_step(5, None)


def test_saving_comes_every_few_steps_and_at_any_end_but_never_twice():
    saved, waited = [], []
    save = hooks.Save(lambda step, state: saved.append(step), lambda: waited.append(len(saved)), every=4, first=2)
    for step in range(3, 10):
        if save.due(step):
            save.on_step(step, None)
    save.on_end(9, None, finished=False)
    assert saved == [4, 8, 9] and waited == [3]
    again = hooks.Save(lambda step, state: saved.append(step), lambda: waited.append(len(saved)), every=4, first=9)
    again.on_end(9, None, finished=True)
    assert saved == [4, 8, 9] and waited == [3, 3]


def test_samples_are_files_named_by_step(tmp_path):
    run = RunDirectory(tmp_path)
    sample = hooks.Sample(lambda weights: f"é {weights}", lambda state: state * 2, 5, 7, run.write_sample)
    assert [step for step in range(1, 8) if sample.due(step)] == [5, 7]
    sample.on_step(5, 1)
    sample.on_step(7, 3)
    texts = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "samples").iterdir()}
    assert texts == {"step_00000005.md": "é 2", "step_00000007.md": "é 6"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_update_under_way(number, monkeypatch):
    monkeypatch.setattr(hooks, "_GRACE_SECONDS", 0.2)
    before = signal.getsignal(number)
    said, codes = [], []
    with hooks.StopOnSignal(say=said.append, kept=lambda: "checkpoint 5 is kept", end=codes.append) as stop:
        assert not stop.due(1)
        os.kill(os.getpid(), number)
        assert stop.due(2) and stop.received == number
        with pytest.raises(Stop):
            stop.on_step(2, None)
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                time.sleep(5)
    stop._thread.join()
    assert f"{number.name}: the run stops after the update under way and saves" in said[0]
    assert said[1:] == (["interrupted: checkpoint 5 is kept"] if number == signal.SIGINT else [])
    if number == signal.SIGINT:
        time.sleep(1)
    assert codes == ([130] if number == signal.SIGINT else [])
    assert signal.getsignal(number) is before


def test_the_reason_of_a_stop_names_the_host_where_there_are_several():
    with connections(2) as (opened, _):
        groups = [ProcessGroup(line, ["a", "b"]) for line in opened]
        stops = [hooks.StopOnSignal(group) for group in groups]
        assert everywhere(stops, lambda stop: stop.reason()) == [None, None]
        stops[1]._receive(signal.SIGTERM, None)
        assert everywhere(stops, lambda stop: stop.reason()) == ["SIGTERM on host 1 (b)"] * 2
        assert everywhere(stops, lambda stop: [stop.due(step) for step in range(1, 3000)][-1]) == [True, True]
    alone = hooks.StopOnSignal()
    alone._receive(signal.SIGINT, None)
    assert alone.reason() == "SIGINT"
