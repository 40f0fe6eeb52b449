"""Bad input comes back as one clear message, and nothing that was there before is lost."""

import shutil

import numpy as np
import pytest

from llm_jax.assemble import assemble
from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core.run_directory import RunDirectory
from llm_jax.core.trees import named_leaves
from llm_jax.tokenizers import load_tokenizer
from tests.helpers.command_line import llm_jax
from tests.integration.outcome import final, starts


def content(run: RunDirectory) -> dict:
    """Every file of a run, but for TensorBoard's."""
    files = [path for path in run.path.rglob("*") if path.is_file() and run.tensorboard not in path.parents]
    return {path: path.read_bytes() for path in files}


@pytest.fixture
def existing(finished, tmp_path):
    """A copy of a complete run."""
    shutil.copytree(finished.path, tmp_path / "runs" / "tiny")
    return RunDirectory(tmp_path / "runs" / "tiny")


@pytest.fixture
def again(finished, existing, cache):
    """The command that made the complete run, on the copy of it."""
    file = finished.path.parent / "lab" / "tiny_experiment.py"
    runs = existing.path.parent
    return lambda *words: llm_jax(
        "train", file, "--runs-dir", runs, "--cache-dir", cache, "--evaluations.0.test", *words
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizer.peek-lr", 1), "--optimizer.peak-lr"),
        (("--steps", "many"), "--steps is 'many': it must be an int, such as"),
        (("--steps", 0), "steps is 0: it must be greater than 0"),
        (("--model.segments.0.blocks.0.mixer.heads", 3), "kv_heads is 2 and heads is 3"),
        (("--data.sequence-length", 65), "data.sequence_length is 65 and model.max_length is 64"),
        (("--update.accumulate", 3), "data.batch_size is 4 and update.accumulate is 3"),
        (("--name", "a/b"), "it must be a plain name without slashes"),
        (("--name", ".."), "it must be a plain name without slashes"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_made(train, run, words, message):
    outcome = train(*words)
    assert outcome.code != 0
    assert message in outcome.said
    assert not run.path.parent.exists()


def test_heads_that_do_not_divide_the_width_are_refused(file, train):
    file.write_text(
        "from llm_jax.models.families.gpt2 import gpt2\ndef experiment(): return gpt2(2, heads=3, width=16)"
    )
    outcome = train()
    assert outcome.code != 0 and "heads is 3 and width is 16: heads must divide width" in outcome.said


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda corpus: (corpus / "07.txt").write_text(""), "07.txt is empty"),
        (lambda corpus: (corpus / "07.txt").write_bytes(b"caf\xe9"), "07.txt is not UTF-8: byte 3 is 0xe9"),
        (lambda corpus: shutil.rmtree(corpus), "no file"),
        (
            lambda corpus: [path.write_text("a") for path in corpus.iterdir()],
            "one batch requires batch_size x sequence",
        ),
    ],
    ids=["empty file", "invalid UTF-8", "missing", "smaller than a batch"],
)
def test_data_that_cannot_be_trained_on_are_refused(file, train, run, spoil, message):
    spoil(file.parent / "corpus")
    outcome = train()
    assert outcome.code != 0
    assert message in outcome.said
    assert not run.metrics_file.exists()


def test_a_mistake_can_be_mended_without_deleting_anything(train, run):
    # Nothing was trained, so there is no other experiment whose run could be lost.
    assert train("--data.source.source.paths", "absent.txt").code != 0
    assert train("--steps", 4).code == 0
    assert starts(run) == [None]


def test_a_changed_experiment_is_refused_with_the_difference_and_both_remedies(again, existing):
    before = content(existing)
    outcome = again("--optimizer.peak-lr", 0.5, "--steps", 13)
    assert outcome.code != 0
    assert "optimizer.peak_lr: 0.01 -> 0.5" in outcome.said and "steps: 12 -> 13" in outcome.said
    assert "log_every" not in outcome.said
    assert "--name" in outcome.said and "--fresh" in outcome.said
    assert content(existing) == before


def test_fresh_begins_anew(again, existing):
    outcome = again("--fresh", "--steps", 4)
    assert outcome.code == 0, outcome.err
    assert starts(existing) == [None] and existing.experiment().steps == 4
    assert saved_steps(existing.checkpoints) == (4,)


def test_fresh_deletes_nothing_for_an_experiment_that_cannot_start(again, existing):
    before = content(existing)
    assert again("--fresh", "--data.source.source.paths", "absent.txt").code != 0
    assert content(existing) == before


def test_fresh_deletes_only_runs(train, tmp_path):
    thesis = tmp_path / "runs" / "tiny" / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    outcome = train("--fresh", "--steps", 4)
    assert thesis.exists()
    assert outcome.code != 0 and "not a run" in outcome.said


@pytest.mark.parametrize("words", [(), ("--fresh",)])
def test_a_file_in_the_place_of_the_run_directory_is_left_alone(train, run, words):
    run.path.parent.mkdir()
    run.path.write_text("precious")
    outcome = train(*words)
    assert outcome.code != 0
    assert f"run directory {run.path} cannot be written" in outcome.said and "--runs-dir" in outcome.said
    assert run.path.read_text() == "precious"


def test_another_tokenizer_is_refused_and_the_run_keeps_its_own(file, train, run):
    file.write_text(
        "from pathlib import Path\nfrom llm_jax.tokenizers import CharacterTokenizerConfig\n"
        "from tests.helpers import tiny_run\n"
        "def experiment():\n"
        "    return tiny_run.experiment(Path(__file__).parent, steps=4, tokenizer=CharacterTokenizerConfig())\n"
    )
    assert train().code == 0
    digest = load_tokenizer(run.tokenizer).digest
    for text in (file.parent / "corpus").iterdir():
        text.write_text(text.read_text() + "ß")
    outcome = train()
    assert outcome.code != 0
    assert f"was trained with {digest}" in outcome.said and "start a run under a new name" in outcome.said
    assert load_tokenizer(run.tokenizer).digest == digest
    generated = llm_jax("generate", run.path, "--prompt", "the ", "--new-tokens", 4)
    assert generated.code == 0, generated.err


def test_a_run_does_not_go_on_with_data_that_changed_under_the_same_paths(file, train, run):
    assert train("--steps", 4).code == 0
    before = content(run)
    text = next((file.parent / "corpus").iterdir())
    text.write_text(text.read_text().replace("e", "i", 1))
    outcome = train("--steps", 4)
    assert outcome.code != 0
    assert "restore the data" in outcome.said
    assert content(run) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "record"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(again, existing, damage):
    newest, before, *_ = sorted(saved_steps(existing.checkpoints), reverse=True)
    folder = existing.checkpoints / str(newest) / ("record" if damage == "record" else "state")
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 0xFF
    largest.write_bytes(bytes(data))
    outcome = again()
    assert outcome.code == 0, outcome.err
    assert f"checkpoint {newest} is damaged" in outcome.said and f"resuming from {before}" in outcome.said
    assert starts(existing) == [None, before]
    assert saved_steps(existing.checkpoints)[-1] == newest


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(train, run, cache):
    words = ("--optimizer.peak-lr", 1e30, "--optimizer.clip-norm", None, "--checkpoint.every", 1)
    outcome = train(*words)
    assert outcome.code != 0
    assert "is not finite" in outcome.said and "Lower the learning rate" in outcome.said
    assert "embed" in outcome.said, "no tensor is named"
    newest = saved_steps(run.checkpoints)[-1]
    assert f"step {newest + 1} is not finite" in outcome.said
    parts = assemble(run.experiment(), cache)
    for name, leaf in named_leaves(final(run, parts, newest).state):
        assert np.isfinite(np.asarray(leaf, np.float64)).all(), name
    again = train(*words)
    assert again.code != 0 and f"step {newest + 1} is not finite" in again.said
