"""A run becomes a folder that transformers reads, and such a folder another one."""

import json

import numpy as np

from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core import trees
from llm_jax.interop import load_hf
from tests.helpers.command_line import llm_jax


def test_a_run_is_exported_and_converted_again(finished, tmp_path):
    assert llm_jax("convert", finished.path, tmp_path / "whole").code == 0
    model, params = load_hf(tmp_path / "whole")
    assert model.config.width == finished.experiment().model.width
    first = min(saved_steps(finished.checkpoints))
    assert llm_jax("convert", finished.path, tmp_path / "first", "--step", first).code == 0
    _, earlier = load_hf(tmp_path / "first")
    assert any(
        (np.asarray(a) != b).any() for (_, a), (_, b) in zip(*map(trees.named_leaves, (params, earlier)), strict=True)
    )

    words = ("convert", tmp_path / "whole", tmp_path / "half", "--dtype", "bfloat16")
    assert llm_jax(*words).code == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    _, half = load_hf(tmp_path / "half")
    for (path, leaf), (_, other) in zip(*map(trees.named_leaves, (params, half)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2**-7, err_msg=path)

    again = llm_jax(*words)
    assert again.code != 0 and "already holds" in again.said
    chosen = llm_jax("convert", tmp_path / "whole", tmp_path / "other", "--best")
    assert chosen.code != 0 and "--step and --best choose a checkpoint of a run" in chosen.said
