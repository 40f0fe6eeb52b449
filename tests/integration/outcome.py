"""What a run came to: everything that must not depend on where it was stopped."""

from typing import Any

import jax
import numpy as np

from llm_jax.assemble import Assembly
from llm_jax.checkpoints.restore import Restored, restore_state
from llm_jax.core.run_directory import RunDirectory
from llm_jax.core.trees import named_leaves

_CLOCK = {"time", "seconds", "tokens_per_second", "mfu"}
"""Fields of a record that tell how fast it went."""


def final(run: RunDirectory, parts: Assembly, step: int | None = None) -> Restored:
    """The checkpoint of `step`, or the last one of a run that is complete."""
    step = parts.experiment.steps if step is None else step
    digest = parts.tokenizer.digest if parts.tokenizer else "none"
    return restore_state(run.checkpoints.absolute(), parts.programs.abstract_state, digest, step)


def records(run: RunDirectory) -> list[dict[str, Any]]:
    """The records of a run, without those fields that the clock decides."""
    return [{name: value for name, value in record.items() if name not in _CLOCK} for record in run.records()]


def starts(run: RunDirectory) -> list[int | None]:
    """The step that each start of a run resumed from."""
    return [start["resumed_from"] for start in run.card()["starts"]]


def assert_identical(left: RunDirectory, right: RunDirectory, parts: Assembly) -> None:
    """Two runs of the experiment of `parts` have the same records and, bit for bit, the same final parameters,
    optimizer state, average and data position."""
    assert records(left) == records(right)
    trained = [record["step"] for record in records(left) if record["kind"] == "train"]
    assert trained == list(range(1, parts.experiment.steps + 1))
    a, b = final(left, parts), final(right, parts)
    assert a.data == b.data
    names = [name for name, _ in named_leaves(a.state)]
    assert {name.split("/")[0] for name in names} == {"step", "params", "opt_state", "ema"}
    for name, x, y in zip(names, jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), name
