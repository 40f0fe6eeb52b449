import os
import subprocess
import sys
from pathlib import Path


def test_a_kill_at_any_moment_loses_nothing_that_was_saved(tmp_path):
    kills = 10
    command = [sys.executable, "-m", "tests.checkpoints.saver_to_kill", str(tmp_path), str(kills), "0"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    starts = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    assert len(starts) == kills and starts[-1][0] > 5
    assert all(resumed >= finished for resumed, finished, _ in starts)
    assert any(temporaries for _, _, temporaries in starts), "no kill fell into a save"
