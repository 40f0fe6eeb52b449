"""Settings of jax that must be made before a device is used."""

from pathlib import Path

import jax

from llm_jax.core.checks import check


def simulate(cpu_devices: int | None) -> None:
    """Makes jax use this number of simulated CPU devices and no others. Call it before jax initialises its devices."""
    if cpu_devices is not None:
        check(cpu_devices >= 1, f"--cpu-devices is {cpu_devices}: it must be at least 1")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpu_devices)


def keep_compiled_programs(cache: Path) -> None:
    """Enables jax's persistent compilation cache in `cache`, unless JAX_COMPILATION_CACHE_DIR sets another folder."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str((cache / "jax").absolute()))
