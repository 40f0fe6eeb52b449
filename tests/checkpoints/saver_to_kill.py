"""Run by test_kill.py: kills its own children, each of which resumes and then saves as fast as it can.

Usage: saver_to_kill.py DIRECTORY KILLS SEED. Prints one line per child: the step it resumed from, the last step whose
save its predecessor had seen finish, and the temporaries that it found. Children are forked before jax starts its
threads, to spare them the imports.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.checkpoints.digest import digests
from tests.checkpoints.states import abstract, checkpoints

SHAPES = {"scalar": (), "bias": (300,), **{f"kernel{index}": (120, 120) for index in range(6)}}


def state_of(step: int) -> dict[str, jax.Array]:
    """All arrays are functions of the step, so that a mixture of two steps shows."""
    return {name: jnp.full(shape, step, jnp.float32) + len(name) for name, shape in SHAPES.items()}


def child(directory: Path, finished: Path, started: int) -> None:
    temporaries = len(list(directory.glob("*tmp*")))
    opened = checkpoints(directory, keep_last=2)
    restored = opened.restore(abstract(state_of(0)))
    step = 0 if restored is None else restored.step
    if restored is not None:
        assert restored.skipped == (), restored.skipped
        assert restored.data == {"position": step}
        for name, value in state_of(step).items():
            np.testing.assert_array_equal(restored.state[name], value)
    assert not list(directory.glob("*tmp*"))
    print(step, finished.read_text() if finished.exists() else 0, temporaries, flush=True)
    digests(state_of(0))  # compiled before the clock starts
    os.write(started, b"!")
    while True:
        step += 1
        opened.save(step, state_of(step), {"position": step}, {})
        opened.wait()
        finished.with_suffix(".new").write_text(str(step))
        finished.with_suffix(".new").rename(finished)


def main(directory: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(kills):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(directory / "checkpoints", directory / "finished", writer)
        os.close(writer)
        if not os.read(reader, 1):
            raise SystemExit("a child failed")
        time.sleep(draw.uniform(0.01, 0.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
