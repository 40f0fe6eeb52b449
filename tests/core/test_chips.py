"""A chip on record has a plausible peak and a source; an unknown one has none."""

from llm_jax.core import chips


def test_unknown_chip_has_no_peak():
    assert chips.chip("cpu") is None
    assert chips.chip("") is None


def test_known_chips_give_peak_memory_and_source():
    for kind in ("TPU v4", "TPU v5 lite", "TPU v5p", "TPU v6 lite", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"):
        chip = chips.chip(kind)
        assert 1e14 < chip.peak_flops < 1e16
        assert 10e9 < chip.memory_bytes < 1e12
        assert chip.source
