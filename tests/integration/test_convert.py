"""A run becomes a folder that transformers reads, and such a folder another one."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core import trees
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.interop import load_hf
from llm_jax.trained_model import TrainedModel
from tests.helpers.command_line import llm_jax


def test_a_run_begins_with_weights_that_are_there(finished, train, run, tmp_path):
    assert llm_jax("convert", finished.path, tmp_path / "folder").code == 0
    rate = ("--optimizer.peak-lr", "1e-12", "--steps", "1", "--optimizer.schedule.warmup-steps", "0")
    assert train("--start", "huggingface", "--start.folder", tmp_path / "folder", *rate).code == 0
    begun = [record for record in run.records() if record["kind"] == "eval/validation"]
    ended = [record for record in finished.records() if record["kind"] == "eval/validation"]
    np.testing.assert_allclose(begun[0]["loss"], ended[-1]["loss"], rtol=1e-4)
    fresh = [record["loss"] for record in finished.records() if record["kind"] == "train"][0]
    assert begun[0]["loss"] < fresh - 0.1


MIXED = '''"""The tiny experiment with experts, for tests."""

import dataclasses
from pathlib import Path

from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.families.decoder import with_experts
from tests.helpers import tiny_run


def experiment():
    dense = tiny_run.experiment(Path(__file__).parent)
    ffn = dense.model.segments[0].blocks[0].ffn
    return dataclasses.replace(dense, model=with_experts(dense.model, MoEConfig(3, ffn, SoftmaxConfig(2)), [1]))
'''


def test_experts_begin_as_copies_of_a_dense_model(finished, file, run, tmp_path, cache):
    assert llm_jax("convert", finished.path, tmp_path / "folder").code == 0
    mixed = file.with_name("mixed.py")
    mixed.write_text(MIXED)
    places = (
        "--runs-dir",
        tmp_path / "runs",
        "--cache-dir",
        cache,
        "--start",
        "huggingface",
        "--start.folder",
        tmp_path / "folder",
    )
    rate = ("--optimizer.peak-lr", "1e-12", "--steps", "1", "--optimizer.schedule.warmup-steps", "0")
    outcome = llm_jax("train", mixed, *places, *rate)
    assert outcome.code == 0, outcome.said
    begun = [record for record in run.records() if record["kind"] == "eval/validation"]
    ended = [record for record in finished.records() if record["kind"] == "eval/validation"]
    np.testing.assert_allclose(begun[0]["loss"], ended[-1]["loss"], rtol=1e-4)
    narrow = MIXED.replace("MoEConfig(3, ffn,", "MoEConfig(3, dataclasses.replace(ffn, hidden=8),")
    mixed.write_text(narrow)
    outcome = llm_jax("train", mixed, *places, "--name", "narrow", *rate)
    assert outcome.code != 0 and "set `expert` to the dense ffn" in outcome.said


def test_a_run_begins_with_the_weights_of_a_run_and_does_not_need_them_again(finished, train, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    start = ("--start", "run", "--start.run", copy)
    rate = ("--optimizer.peak-lr", "1e-12", "--steps", "1", "--optimizer.schedule.warmup-steps", "0")
    assert train(*start, "--name", "copy", "--runs-dir", tmp_path).code != 0
    outcome = train(*start, *rate)
    assert outcome.code == 0 and f"arrays from {copy}" in outcome.said
    begun, *_ = (record["loss"] for record in run.records() if record["kind"] == "eval/validation")
    *_, ended = (record["loss"] for record in finished.records() if record["kind"] == "eval/validation")
    np.testing.assert_allclose(begun, ended, rtol=1e-4)
    facts = run.read_card()[0][-1]["start"]
    assert facts["loaded"] > 5 and facts["drawn"] == facts["resized"] == []
    shutil.rmtree(copy)
    outcome = train(*start, *rate, "--steps", "2")
    assert outcome.code == 0, outcome.said
    assert max(saved_steps(run.checkpoints)) == 2


def test_weights_of_another_model_are_refused(finished, train, run, tmp_path):
    assert llm_jax("convert", finished.path, tmp_path / "folder").code == 0
    outcome = train("--start", "huggingface", "--start.folder", tmp_path / "folder", "--model.width", "24")
    assert outcome.code != 0
    assert "holds another model than the experiment's: width: 24 -> 16" in outcome.said
    assert not run.checkpoints.exists()
    tokenizer = tmp_path / "folder" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text().replace('"llm_jax_digest": "', '"llm_jax_digest": "0'))
    outcome = train("--start", "huggingface", "--start.folder", tmp_path / "folder")
    assert outcome.code != 0 and "was trained with tokenizer 0" in outcome.said


def test_text_is_generated_by_a_folder_of_transformers_as_by_the_run(finished, tmp_path):
    folder = tmp_path / "folder"
    assert llm_jax("convert", finished.path, folder).code == 0
    options = ("--prompt", "the red fox", "--new-tokens", 12, "--sampling.temperature", 0)
    outcome = llm_jax("generate", folder, *options)
    assert outcome.code == 0, outcome.said
    of_run, of_folder = TrainedModel.of(finished), TrainedModel.of(folder)
    prompt = of_folder.prompt("the red fox")
    generator = Generator(of_run.model, SamplingConfig(0.0), of_run.tokenizer.eos_id, of_run.tokenizer.pad_id, 259)
    (expected,) = generator.generate(of_run.params, [prompt], 12)
    assert outcome.out.rstrip("\n") == "the red fox" + of_run.tokenizer.continuation(prompt, expected)
    assert of_folder.prompt("the red fox") == transformers_ids(folder, "the red fox")
    half = TrainedModel.of(folder, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    assert llm_jax("generate", folder, *options, "--dtype", "bfloat16").code == 0


def transformers_ids(folder, text):
    """As transformers tokenizes it, special tokens included."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


def test_what_a_folder_of_transformers_has_not_is_refused(finished, tmp_path):
    folder = tmp_path / "folder"
    assert llm_jax("convert", finished.path, folder).code == 0
    words = ("generate", folder, "--prompt", "the")
    outcome = llm_jax(*words, "--best")
    assert outcome.code == 1 and "--step and --best choose a checkpoint of a run" in outcome.said
    outcome = llm_jax("generate", finished.path, "--prompt", "the", "--dtype", "bfloat16")
    assert outcome.code == 1 and "whose experiment states its precision: omit --dtype" in outcome.said
    with pytest.raises(ValueError, match="a folder of transformers has no held-out data"):
        next(TrainedModel.of(folder).held_out(tmp_path))
    (folder / "tokenizer.json").unlink()
    outcome = llm_jax(*words)
    assert outcome.code == 1 and "has no tokenizer.json, tokenizer.model or spiece.model" in outcome.said
    assert llm_jax("generate", tmp_path, "--prompt", "the").code == 1


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
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    _, half = load_hf(tmp_path / "half")
    for (path, leaf), (_, other) in zip(*map(trees.named_leaves, (params, half)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2**-7, err_msg=path)

    again = llm_jax(*words)
    assert again.code != 0 and "already holds" in again.said
    chosen = llm_jax("convert", tmp_path / "whole", tmp_path / "other", "--best")
    assert chosen.code != 0 and "--step and --best choose a checkpoint of a run" in chosen.said
