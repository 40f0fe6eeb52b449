"""`llm-jax ...` as a user meets it: what it prints and the code it exits with."""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from llm_jax import cli

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Everything printed, in one line without the frames and line breaks of a terminal's width."""
        return " ".join((self.out + " " + self.err).split())


def llm_jax(*words: object) -> Outcome:
    """Runs a command in this process, which spares it the imports. An exception, hence a traceback, goes through."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
    if isinstance(code, str):  # python prints it and exits with 1
        return Outcome(1, out.getvalue(), err.getvalue() + code)
    return Outcome(code or 0, out.getvalue(), err.getvalue())


def start(
    *words: object, module: str = "llm_jax", environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen:
    """Starts `python -m llm_jax ...` on the CPU, or another module, with this process's settings of the compiler."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen, seconds: float = 200) -> Outcome:
    """What a started command comes to."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return Outcome(process.returncode, out, err)


ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
}
