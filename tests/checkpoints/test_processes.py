import os
import socket
import subprocess
import sys
from pathlib import Path


def test_two_processes_save_together_and_fall_back_to_the_same_step(tmp_path):
    """Checkpoint 3 is damaged for both, checkpoint 2 cannot be read by the second only."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    script = [sys.executable, "-m", "tests.checkpoints.two_processes"]
    processes = [
        subprocess.Popen(
            [*script, str(process), str(port), str(tmp_path / "run")],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    results = [process.communicate(timeout=100) for process in processes]
    for out, err in results:
        lines = [line for line in out.splitlines() if not line.startswith("[Gloo]")]
        assert lines == ["1 [3, 2] 1", "1 2 corrupt-2 corrupt-3"], err
