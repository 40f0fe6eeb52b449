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
        _check_cache(cpu_devices)


def keep_compiled_programs(cache: Path) -> None:
    """Enables jax's persistent compilation cache in `cache`, unless JAX_COMPILATION_CACHE_DIR sets another folder. With
    several CPU devices there is no cache. Call it after this process has joined others."""
    if jax.default_backend() == "cpu":
        _check_cache(jax.local_device_count())
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str((cache / "jax").absolute()))


def _check_cache(cpu_devices: int) -> None:
    """Disables the compilation cache for several CPU devices: XLA (jaxlib 0.10 and 0.12) mixes up the collectives of a
    program that it reads from there, and ends the process."""
    if cpu_devices > 1:
        jax.config.update("jax_enable_compilation_cache", False)
