"""The built-in hooks: progress, records, evaluation, saving, samples, stopping on signals."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_jax.core.metrics_file import open_metrics
from llm_jax.core.run_directory import RunDirectory
from llm_jax.hosts.process_group import Hosts
from llm_jax.trackers.tracker import TrackedRun, Tracker
from llm_jax.trackers.tracking import Tracking
from llm_jax.train.display import Display
from llm_jax.train.loop import Hook, Stop
from llm_jax.train.state import EvaluationWeights, TrainState

_GRACE_SECONDS = 2.0
"""Time between a second Ctrl-C and the end of the process."""


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


class Recorder:
    """Appends records to metrics.jsonl, each as one complete line, and passes their numbers to trackers.

    `latest` holds the last record of each kind, which checkpoints store. If a crash loses the end of the file,
    `write_again` restores them.

    Args:
      experiment: flat text of the experiment, for the trackers.
      say: called with a message when a tracker is disabled after a failure.
    """

    def __init__(
        self,
        run: RunDirectory,
        trackers: Sequence[Tracker] = (),
        experiment: str = "",
        say: Callable[[str], None] = _say,
    ):
        self._run, self._file = run, open_metrics(run.metrics_file)
        tracked = TrackedRun(run, experiment, resumed=any(run.records()))
        self.latest: dict[str, dict[str, Any]] = {}
        self._trackers = [Tracking(tracker, tracked, say) for tracker in trackers]

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Writes one record to the file, and its numbers to the trackers."""
        line = json.dumps({"kind": kind, "step": step, "time": time.time()} | values)
        self._file.append(line)
        self.latest[kind] = json.loads(line)
        if figures := {name: value for name, value in values.items() if isinstance(value, (int, float))}:
            for tracker in self._trackers:
                tracker.write(kind, step, figures)

    def write_again(self, kept: Mapping[str, dict[str, Any]]) -> None:
        """Writes the records of `kept` that are missing in the file."""
        there = {(record["kind"], record["step"]) for record in self._run.records()}
        for kind, record in kept.items():
            if (kind, record["step"]) not in there:
                self._file.append(json.dumps(record))
        self.latest |= kept

    def keep_file(self) -> None:
        """Ensures that all records are in the file, even if the file was deleted meanwhile."""
        self._file.keep()

    def close(self) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


class Silent(Recorder):
    """The recorder of all processes but the first. It writes nothing."""

    def __init__(self):
        """Opens no file."""
        self.latest = {}

    def write_again(self, kept: Mapping[str, dict[str, Any]]) -> None:
        """Does nothing: the first process writes them."""

    def keep_file(self) -> None:
        """Does nothing: the first process keeps it."""

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Does nothing: the first process writes it."""

    def close(self) -> None:
        """Does nothing."""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Converts the seconds of a step into rates."""

    tokens_per_step: int
    flops_per_token: float
    peak_flops: float | None
    """Published peak FLOP/s of all devices together; None if the chip is not in the table."""

    def rates(self, seconds: float, steps: int = 1) -> dict[str, float]:
        """tokens_per_second and, if the peak is known, mfu (model FLOPs utilisation, a fraction)."""
        tokens = self.tokens_per_step * steps / seconds
        rates = {"tokens_per_second": tokens}
        if self.peak_flops is not None:
            rates["mfu"] = tokens * self.flops_per_token / self.peak_flops
        return rates


class Log(Hook):
    """Records the training metrics every `every` steps and updates the progress display.

    Rates leave out the first step after a start, which includes tracing and other one-time work. `total_seconds` is
    the time spent in steps, over all starts of the run. On resuming, pass the value of the last save.
    """

    def __init__(
        self,
        recorder: Recorder,
        display: Display,
        throughput: Throughput,
        every: int,
        total_seconds: float = 0.0,
    ):
        self._recorder, self._display, self._throughput, self._every = recorder, display, throughput, every
        self._seconds, self._steps = 0.0, 0
        self._started = False
        self.total_seconds = total_seconds

    def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.total_seconds += metrics["seconds"]
        values = {name: value for name, value in metrics.items() if name != "seconds"}
        if self._started:
            self._seconds += metrics["seconds"]
            self._steps += 1
            values |= self._throughput.rates(self._seconds, self._steps)
        self._started = True
        self._display.update(step, values)
        if step % self._every == 0:
            tokens = step * self._throughput.tokens_per_step
            self._recorder.write("train", step, **values, tokens=tokens, seconds=self.total_seconds)
            self._seconds, self._steps = 0.0, 0


class Evaluate(Hook):
    """Evaluates the weights every `every` steps and after step `last`. `metrics` holds the metrics of `step` by which
    checkpoints can be compared.

    Args:
      measure: (weights, step) -> metric values by name, for each evaluation set by name.
      compared: selects `metrics` from these values.
    """

    def __init__(
        self,
        measure: Callable[[EvaluationWeights, int], Mapping[str, Mapping[str, Any]]],
        compared: Callable[[Mapping[str, Mapping[str, float]]], dict[str, float]],
        weights: Callable[[TrainState], EvaluationWeights],
        every: int,
        last: int,
        recorder: Recorder,
        display: Display,
    ):
        self._measure, self._compared, self._weights = measure, compared, weights
        self._every, self._last = every, last
        self._recorder, self._display = recorder, display
        self.metrics: dict[str, float] = {}
        self.step = -1

    def due(self, step: int) -> bool:
        return step % self._every == 0 or step == self._last

    def on_step(self, step: int, state: TrainState) -> None:
        measured = self._measure(self._weights(state), step)
        found = {
            name: {metric: _float(f"{name}/{metric}", value) for metric, value in values.items()}
            for name, values in measured.items()
        }
        self.metrics, self.step = self._compared(found), step
        for name, values in found.items():
            self._recorder.write(f"eval/{name}", step, **values)
            listed = {key: value for key, value in values.items() if key != "targets" and "/" not in key}
            shown = "  ".join(f"{key} {value:.4f}" for key, value in listed.items())
            self._display.print(f"step {step}  {name}: {shown}")


def _float(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"an evaluation returned {name} with type {type(value).__name__}: it must be a number, or a scalar of "
            "numpy or jax"
        ) from error


class Save(Hook):
    """Saves every `every` steps and at the end through `save(step, state)`."""

    def __init__(self, save: Callable[[int, TrainState], None], wait: Callable[[], None], every: int, first: int):
        self._save, self._wait, self._every = save, wait, every
        self._saved = first

    def due(self, step: int) -> bool:
        return step % self._every == 0

    def on_step(self, step: int, state: TrainState) -> None:
        self._save(step, state)
        self._saved = step

    def on_end(self, step: int, state: TrainState, finished: bool) -> None:
        if step > self._saved:
            self.on_step(step, state)
        self._wait()


class Sample(Hook):
    """Passes text sampled from the model to `write(step, text)` every `every` steps and after step `last`. If a text
    cannot be written, only a message is shown."""

    def __init__(
        self,
        sample: Callable[[EvaluationWeights], str],
        weights: Callable[[TrainState], EvaluationWeights],
        every: int,
        last: int,
        write: Callable[[int, str], None],
        say: Callable[[str], None] = _say,
    ):
        self._sample, self._weights, self._every, self._last = sample, weights, every, last
        self._write, self._tell = write, say

    def due(self, step: int) -> bool:
        return step % self._every == 0 or step == self._last

    def on_step(self, step: int, state: TrainState) -> None:
        text = self._sample(self._weights(state))
        try:
            self._write(step, text)
        except OSError as error:
            self._tell(f"the samples of step {step} cannot be written ({error}); the run continues")


class StopOnSignal(Hook):
    """SIGTERM or SIGINT on any process ends training after the current step, which is the same step on all processes.
    `on_end` of the hooks then saves. A second SIGINT interrupts at once. A context manager: restores the former
    handlers on exit.

    Python runs signal handlers only between two bytecode instructions. During compilation or execution of a compiled
    function that may take minutes. So a thread, woken by the signal itself, prints the message, and ends the process
    if the second SIGINT has not ended it.

    Args:
      say: shows a line.
      kept: returns a message, for an interruption that ends the process, about what is kept of the run.
      end: ends the process with an exit code.
    """

    def __init__(
        self,
        hosts: Hosts | None = None,
        say: Callable[[str], None] = _say,
        kept: Callable[[], str] = str,
        end: Callable[[int], None] = os._exit,
    ):
        self._hosts = Hosts() if hosts is None else hosts
        self._tell, self._kept, self._end = say, kept, end
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopOnSignal":
        self._wakes, self._woken = os.pipe()
        os.set_blocking(self._woken, False)
        self._thread = threading.Thread(target=self._answer, name="signals", daemon=True)
        self._thread.start()
        # Python's C-level handler writes the number of a signal into the pipe at once, even while the main thread is in
        # compiled code.
        self._former_wakeup = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_wakeup)
        # The thread's read then returns nothing, which ends it.
        os.close(self._woken)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        self._hosts.ask_to_stop()

    def _answer(self) -> None:
        """Reads the numbers of arriving signals until the context exits."""
        interrupts = 0
        while numbers := os.read(self._wakes, 64):
            for number in numbers:
                interrupts += number == signal.SIGINT
                if number == signal.SIGTERM or number == signal.SIGINT and interrupts == 1:
                    self._tell(f"{signal.Signals(number).name}: the run stops after the update under way and saves; "
                               "a second Ctrl-C ends it at once")  # fmt: skip
                elif number == signal.SIGINT and interrupts == 2:
                    self._tell(f"interrupted: {self._kept()}")
                    # The delay lets the main thread close what it has opened and notify other processes, if it can.
                    threading.Timer(_GRACE_SECONDS, self._end, (128 + signal.SIGINT,)).start()
        os.close(self._wakes)

    def due(self, step: int) -> bool:
        return self._hosts.must_stop(step)

    def on_step(self, step: int, state: TrainState) -> None:
        raise Stop

    def reason(self) -> str | None:
        """The signal received and the process that received it; None if none did. A collective call after training."""
        received = self._hosts.gather("signals received", self.received and self.received.name)
        told = [(name, index) for index, name in enumerate(received) if name]
        if not told:
            return None
        return told[0][0] + (f" on host {told[0][1]} ({self._hosts.names[told[0][1]]})" if len(received) > 1 else "")
