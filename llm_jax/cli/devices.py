"""Settings of jax that a command makes before it uses a device."""

from pathlib import Path

import jax

from llm_jax.core.checks import check


def simulate(cpu_devices: int | None) -> None:
    """Makes jax see this number of devices of the CPU and no others; it must not have seen any yet."""
    if cpu_devices is not None:
        check(cpu_devices >= 1, f"--cpu-devices is {cpu_devices}: simulate at least 1")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpu_devices)


def keep_compiled_programs(cache: Path) -> None:
    """Programs compiled once are read back by later runs; JAX_COMPILATION_CACHE_DIR names another place."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str((cache / "jax").absolute()))
