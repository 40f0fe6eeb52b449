"""A command postpones garbage collection while it starts."""

import subprocess
import sys

PROGRAM = """
import gc, sys
from llm_jax import cli
from llm_jax.core import garbage

usual = gc.get_threshold()
garbage.settle()
assert gc.get_threshold() == usual and gc.get_freeze_count() == 0  # nothing was postponed
cli.main(["--help"])
assert gc.get_threshold() == usual  # another program called it
sys.argv = ["llm-jax", "--help"]
cli.main()
assert gc.get_threshold() == garbage.STARTING > usual
garbage.settle()
assert gc.get_threshold() == usual and gc.get_freeze_count() > 1000
"""


def test_the_process_of_a_command_postpones_it_until_it_has_started():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
