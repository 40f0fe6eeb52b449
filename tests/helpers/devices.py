"""Programs that need eight devices, run apart: this process has one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers import compiler

ROOT = Path(__file__).parent.parent.parent


def run(module: str, *arguments: str, fused: bool = False) -> subprocess.CompletedProcess:
    """A module of tests/helpers, run on eight fake devices.

    Args:
      fused: whether XLA fuses as it does for users, for facts that depend on it.
    """
    settings = compiler.devices(8, fused)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | settings
    command = [sys.executable, "-m", f"tests.helpers.{module}", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def printed(result: subprocess.CompletedProcess) -> Any:
    """What it printed last, read as JSON."""
    return json.loads(result.stdout.splitlines()[-1])
