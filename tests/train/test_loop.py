"""The order of things, seen with a step that only counts."""

import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.metrics import Ratio
from llm_jax.train.loop import Hook, Stop, train
from llm_jax.train.step import StepReport


class Spy(Hook):
    """Notes what it is told, and stops training where asked to."""

    def __init__(self, events: list, every: int = 0, name: str = "", stop_on_step: int = 0, stop_on_metrics: int = 0):
        self.events, self.every, self.name = events, every, name
        self.stop_on_step, self.stop_on_metrics = stop_on_step, stop_on_metrics
        self.metrics: dict[int, dict[str, float]] = {}

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.events.append(f"{self.name}metrics {step}")
        self.metrics[step] = metrics
        if step == self.stop_on_metrics:
            raise Stop

    def on_step(self, step: int, state: Any) -> None:
        assert state == step
        self.events.append(f"{self.name}step {step}")
        if step == self.stop_on_step:
            raise Stop

    def on_end(self, step: int, state: Any, finished: bool) -> None:
        assert state == step
        self.events.append(f"{self.name}end {step}" if finished else f"{self.name}end {step} early")


def _report(step: int, bad: bool = False) -> StepReport:
    norm = jnp.float32(np.nan if bad else 4.0)
    return StepReport(
        {"loss": Ratio(jnp.float32(10.0 * step), jnp.float32(4.0))},
        {"block": {"query": norm, "out": jnp.float32(3.0)}},
        jnp.array(not bad),
    )


def _run(hooks: list[Hook], events: list, first: int = 0, last: int = 4, bad: int = 0, data=None) -> int:
    """The state is the number of updates made."""

    def step_function(state: int, batch: int) -> tuple[int, StepReport]:
        events.append(f"dispatch {batch}")
        return state + 1, _report(state + 1, bad=state + 1 == bad)

    return train(first, step_function, iter(data or itertools.count(first + 1)), hooks, first, last)


def test_the_next_update_is_dispatched_before_the_last_ones_figures_are_read():
    events = []
    assert _run([Spy(events)], events) == 4
    assert events == [
        "dispatch 1",
        "dispatch 2",
        "metrics 1",
        "dispatch 3",
        "metrics 2",
        "dispatch 4",
        "metrics 3",
        "metrics 4",
        "end 4",
    ]


def test_a_due_hook_sees_the_state_of_its_step_after_its_figures_and_before_the_next_update():
    events = []
    _run([Spy(events, every=2)], events)
    assert events == [
        "dispatch 1",
        "dispatch 2",
        "metrics 1",
        "metrics 2",
        "step 2",
        "dispatch 3",
        "dispatch 4",
        "metrics 3",
        "metrics 4",
        "step 4",
        "end 4",
    ]


def test_hooks_are_called_in_their_order_and_only_where_due():
    events = []
    _run([Spy(events, every=1, name="a "), Spy(events, every=2, name="b ")], events, last=2)
    assert [event for event in events if "dispatch" not in event] == [
        "a metrics 1",
        "b metrics 1",
        "a step 1",
        "a metrics 2",
        "b metrics 2",
        "a step 2",
        "b step 2",
        "a end 2",
        "b end 2",
    ]


def test_figures_are_means_with_the_norm_over_all_tensors_and_the_time():
    events = []
    spy = Spy(events)
    _run([spy], events)
    assert {step: metrics["loss"] for step, metrics in spy.metrics.items()} == {1: 2.5, 2: 5.0, 3: 7.5, 4: 10.0}
    assert all(metrics["gradient_norm"] == pytest.approx(5.0) for metrics in spy.metrics.values())
    assert all(metrics["seconds"] >= 0 for metrics in spy.metrics.values())
    assert all(type(value) is float for metrics in spy.metrics.values() for value in metrics.values())


def test_norms_of_each_parameter_come_before_the_figures_while_the_next_update_runs():
    events = []

    class Norms(Spy):
        def on_gradient_norms(self, step, norms):
            assert all(isinstance(norm, np.ndarray) for norm in jax.tree.leaves(norms)), "on the host"
            events.append(f"norms {step} {[(path, float(norm)) for path, norm in trees.named_leaves(norms)]}")

    _run([Spy(events), Norms(events)], events, last=2)
    found = [("block/out", 3.0), ("block/query", 4.0)]
    told = lambda step: [f"norms {step} {found}", f"metrics {step}", f"metrics {step}"]  # noqa: E731
    assert events == ["dispatch 1", "dispatch 2", *told(1), *told(2), "end 2", "end 2"]


def test_time_spent_in_hooks_is_not_the_updates():
    class Slow(Spy):
        def on_step(self, step, state):
            time.sleep(0.2)

    events = []
    spy = Slow(events, every=1)
    _run([spy], events, last=3)
    assert max(metrics["seconds"] for metrics in spy.metrics.values()) < 0.2


def test_a_run_goes_on_where_it_stopped():
    events = []
    spy = Spy(events, every=3)
    assert _run([spy], events, first=5, last=7) == 7
    assert [event for event in events if "dispatch" in event] == ["dispatch 6", "dispatch 7"]
    assert "step 6" in events and events[-1] == "end 7"


def test_nothing_left_to_do_is_an_end_without_updates():
    events = []
    assert _run([Spy(events, every=1)], events, first=4, last=4) == 4
    assert events == ["end 4"]


def test_no_batch_is_taken_that_is_not_used():
    # What is saved beside the state of step n is the data position after n batches.
    taken = []

    class Watch(Spy):
        def on_step(self, step, state):
            assert len(taken) == step

    data = map(lambda batch: taken.append(batch) or batch, itertools.count(1))
    events = []
    _run([Watch(events, every=1)], events, data=data)
    assert len(taken) == 4


def test_stop_ends_after_the_step_and_every_hook_is_told():
    events = []
    hooks = [Spy(events, every=2, name="a ", stop_on_step=2), Spy(events, name="b ")]
    assert _run(hooks, events) == 2
    assert events[-3:] == ["a step 2", "a end 2 early", "b end 2 early"]
    assert "dispatch 3" not in events


def test_stop_after_the_last_step_is_no_early_end():
    events = []
    _run([Spy(events, every=4, stop_on_step=4)], events)
    assert events[-1] == "end 4"


def test_stop_at_figures_leaves_no_update_unread():
    events = []
    _run([Spy(events, stop_on_metrics=2)], events)
    made = sum("dispatch" in event for event in events)
    assert made < 4
    assert events[-1] == f"end {made} early"
    assert f"metrics {made}" in events


def test_not_finite_names_step_and_tensors_and_saves_nothing():
    events = []
    with pytest.raises(FloatingPointError, match=r"step 3 .*loss 7.5.*\['block/query'\]") as caught:
        _run([Spy(events, every=3)], events, bad=3)
    assert "block/out" not in str(caught.value)
    assert "learning rate" in str(caught.value)
    assert "step 3" not in events and "metrics 3" not in events and not any("end" in event for event in events)
    assert "metrics 2" in events


def test_not_finite_is_found_in_the_last_update_too():
    with pytest.raises(FloatingPointError, match="step 4"):
        _run([], [], bad=4)
