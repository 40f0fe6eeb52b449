"""How XLA compiles in tests, which compile far more than they compute."""

import importlib.metadata
import os
from collections.abc import MutableMapping

_XLA = {
    # Elementwise loops written by way of MLIR take most of a compilation's time.
    "--xla_cpu_use_fusion_emitters=false": (0, 10),
    # More parts are for processors with more cores than tests have.
    "--xla_cpu_parallel_codegen_split_count=1": (0, 12),
}
"""{flag: the newest version of jaxlib known to have it}. XLA ends the process at a flag that it does not know."""
_JAX = {
    # The optimiser of machine code costs more than it saves.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # What one test has compiled, however small, other processes read.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def configure(environment: MutableMapping[str, str]) -> None:
    """Sets the variables that jax reads when it is imported and XLA when it compiles first. Those that are set stay:
    with empty ones, tests compile as users do."""
    for name, value in _JAX.items():
        environment.setdefault(name, value)
    environment.setdefault("XLA_FLAGS", " ".join(_known()))


def devices(count: int, fused: bool = False) -> dict[str, str]:
    """What a process is given beside this one's environment to have `count` simulated devices.

    Args:
      fused: whether it fuses as XLA does for users.
    """
    flags = "" if fused else os.environ["XLA_FLAGS"]
    settings = {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={count}".strip()}
    # See `keep_compiled_programs` in llm_jax/cli/devices.py.
    return settings | ({"JAX_ENABLE_COMPILATION_CACHE": "false"} if count > 1 else {})


def fused() -> dict[str, bool]:
    """Compiler options of a program that is fused as XLA does for users, for facts that depend on it: without the
    emitters it also expands scatters into loops."""
    return {"xla_cpu_use_fusion_emitters": True} if any("fusion_emitters" in flag for flag in _known()) else {}


def _known() -> list[str]:
    major, minor, *_ = importlib.metadata.version("jaxlib").split(".")
    return [flag for flag, newest in _XLA.items() if (int(major), int(minor)) <= newest]
