"""A run becomes a folder that transformers reads, and such a folder another one."""

import json

import numpy as np

from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core import trees
from llm_jax.interop import load_hf
from tests.helpers.command_line import llm_jax


def test_a_run_begins_with_weights_that_are_there(finished, train, run, tmp_path):
    assert llm_jax("convert", finished.path, tmp_path / "folder").code == 0
    rate = ("--optimizer.peak-lr", "1e-12", "--steps", "1", "--optimizer.schedule.warmup-steps", "0")
    assert train("--start", tmp_path / "folder", *rate).code == 0
    begun = [record for record in run.records() if record["kind"] == "eval/validation"]
    ended = [record for record in finished.records() if record["kind"] == "eval/validation"]
    np.testing.assert_allclose(begun[0]["loss"], ended[-1]["loss"], rtol=1e-4)
    fresh = [record["loss"] for record in finished.records() if record["kind"] == "train"][0]
    assert begun[0]["loss"] < fresh - 0.1


def test_weights_of_another_model_are_refused(finished, train, run, tmp_path):
    assert llm_jax("convert", finished.path, tmp_path / "folder").code == 0
    outcome = train("--start", tmp_path / "folder", "--model.width", "24")
    assert outcome.code != 0
    assert "holds another model than the experiment's: width: 24 -> 16" in outcome.said
    assert not run.checkpoints.exists()


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
