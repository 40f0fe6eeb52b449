"""Encoders and encoder-decoders train by the command line as decoders do: resume, evaluation, sharding, report."""

import dataclasses

import numpy as np
import pytest

from llm_jax.core.run_directory import RunDirectory
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import SampleConfig
from llm_jax.models.config import EncoderDecoderConfig
from llm_jax.models.families.bert import bert
from llm_jax.models.families.t5 import t5
from llm_jax.models.inputs import Inputs
from llm_jax.objectives import (
    Denoiser,
    DenoisingConfig,
    MaskedLMConfig,
    MixtureOfDenoisersConfig,
    SpanCorruptionConfig,
)
from llm_jax.trained_model import TrainedModel
from llm_jax.training_run import run_training
from tests.helpers import tiny_run
from tests.helpers.command_line import llm_jax

FILE = '''"""A tiny experiment, for tests."""

import dataclasses
from pathlib import Path

from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.models.families.bert import bert
from llm_jax.models.families.t5 import t5
from llm_jax.objectives import MaskedLMConfig, SpanCorruptionConfig
from tests.helpers import tiny_run

OBJECTIVES = {
    "encoder": (bert(1, 2, 16, vocab_size=260, max_length=32), MaskedLMConfig(rate=0.5)),
    "pair": (t5(1, 2, 16, hidden=32, vocab_size=264, max_length=32, gated=True), SpanCorruptionConfig()),
}


def experiment():
    model, objective = OBJECTIVES["NAME"]
    default = tiny_run.experiment(Path(__file__).parent, model=model, objective=objective, steps=60)
    return dataclasses.replace(
        default, evaluations=(PerplexityConfig(every=20),), checkpoint=CheckpointConfig(every=55)
    )
'''


@pytest.fixture(params=["encoder", "pair"], scope="module")
def lab(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny_run.write_experiment(folder).write_text(FILE.replace("NAME", request.param))
    return folder


@pytest.fixture(scope="module")
def command(lab, cache):
    return ("train", lab / "tiny_experiment.py", "--runs-dir", lab / "runs", "--cache-dir", cache)


@pytest.fixture(scope="module")
def run(lab, command):
    outcome = llm_jax(*command)
    assert outcome.code == 0, outcome.said
    return RunDirectory(lab / "runs" / "tiny")


def records(run, kind):
    return {record["step"]: record for record in run.records() if record["kind"] == kind}


def test_it_learns_and_what_is_held_out_has_a_loss_and_no_bits_per_byte(run):
    train, held_out = records(run, "train"), records(run, "eval/validation")
    early, late = (np.mean([train[step]["loss"] for step in steps]) for steps in (range(1, 6), range(56, 61)))
    assert late < early - 0.5
    assert held_out[60]["loss"] < held_out[20]["loss"] and "bits_per_byte" not in held_out[60]
    assert held_out[60]["targets"] > 50
    assert (run.path / "report.md").exists()


def test_a_resumed_run_is_the_same_run(run, command):
    before = {step: record["loss"] for step, record in records(run, "train").items()}
    outcome = llm_jax(*command, "--step", 55)
    assert outcome.code == 0, outcome.said
    assert run.card()["starts"][-1]["resumed_from"] == 55
    assert {step: record["loss"] for step, record in records(run, "train").items()} == before


def test_its_weights_are_read_back_and_it_writes_what_its_kind_of_model_can(run):
    trained = TrainedModel.of(run)
    assert trained.model.config == run.experiment().model
    assert next(trained.held_out(run.path.parent / "cache")).inputs.tokens_BT.shape[0] == 4
    pair = isinstance(trained.model.config, EncoderDecoderConfig)
    words = ("the red", "--new-tokens", 4) if pair else ("the <mask>ed fox",)
    outcome = llm_jax("generate", run.path, "--prompt", *words)
    assert outcome.code == 0, outcome.said
    if not pair:
        refused = llm_jax("generate", run.path, "--prompt", "the red")
        assert refused.code == 1 and "has no <mask>" in refused.said


@pytest.fixture
def experiments(tmp_path):
    tiny_run.write_corpus(tmp_path)
    return {
        "encoder": tiny_run.experiment(
            tmp_path, model=bert(1, 2, 16, vocab_size=260, max_length=32), objective=MaskedLMConfig()
        ),
        "pair": tiny_run.experiment(
            tmp_path, model=t5(1, 2, 16, hidden=32, vocab_size=264, max_length=32), objective=SpanCorruptionConfig()
        ),
    }


def test_a_vocabulary_without_room_for_the_objectives_tokens_is_refused(lab, command):
    outcome = llm_jax(
        *command,
        "--name",
        "narrow",
        *(("--model.vocab-size", 259) if lab.name.startswith("encoder") else ("--model.decoder.vocab-size", 259)),
    )
    needed = 260 if lab.name.startswith("encoder") else 261
    assert outcome.code == 1 and f"model.vocab_size is 259: it must be at least {needed}" in outcome.said


@pytest.mark.parametrize("name", ["encoder", "pair"])
def test_what_such_models_cannot_do_is_refused_at_construction(experiments, name):
    experiment = experiments[name]
    with pytest.raises(ValueError, match="samples.prompts .* decoder"):
        dataclasses.replace(experiment, samples=SampleConfig(prompts=("the",)))
    with pytest.raises(ValueError, match="checkpoint.best_metric is 'validation/bits_per_byte'"):
        checkpoint = dataclasses.replace(experiment.checkpoint, best_metric="validation/bits_per_byte", keep_best=1)
        dataclasses.replace(experiment, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="compressors of PerplexityConfig is set"):
        dataclasses.replace(experiment, evaluations=(PerplexityConfig(test=True, compressors=True),))


def test_a_run_writes_as_its_kind_of_model_does(run):
    """Targets of an encoder-decoder, greedy as without a cache, and tokens for masks of an encoder."""
    trained = TrainedModel.of(run)
    pair = isinstance(trained.model.config, EncoderDecoderConfig)
    prompt = "the red fox" if pair else "the <mask>ed fox"
    words = ("--sampling.temperature", 0, "--new-tokens", 4) if pair else ("--top", 1)
    outcome = llm_jax("generate", run.path, "--prompt", prompt, *words)
    assert outcome.code == 0, outcome.said
    tokenizer, row = trained.tokenizer, [0]
    if pair:
        source = np.array([trained.source(prompt)], np.int32)
        for _ in range(4):
            inputs = Inputs(np.array([row], np.int32), encoder=Inputs(source))
            logits_V = trained.model.apply({"params": trained.params}, inputs).logits_BTV[0, -1, : tokenizer.vocab_size]
            row.append(int(np.argmax(logits_V)))
        assert outcome.out == tokenizer.continuation([], row[1:]) + "\n"
    else:
        ids = trained.masked(prompt)
        assert ids.count(259) == 1  # the last id of the model
        logits_TV = trained.model.apply({"params": trained.params}, np.array([ids], np.int32)).logits_BTV[0]
        best = int(np.argmax(logits_TV[ids.index(259), : tokenizer.vocab_size]))
        assert outcome.out.startswith(repr(tokenizer.decode([best])))


DENOISERS = (Denoiser("R", 0.15, 3.0), Denoiser("S", 0.25, None), Denoiser("X", 0.5, 3.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "objective"),
    [
        (bert, MaskedLMConfig(rate=0.5, units="words")),
        (t5, DenoisingConfig(masked=0.1, deleted=0.1, rotated=True)),
        (t5, MixtureOfDenoisersConfig(denoisers=DENOISERS)),
    ],
    ids=["whole words", "BART's noise", "UL2"],
)
def test_text_is_learnt_by_other_objectives_of_such_models(tmp_path, cache, family, objective):
    tiny_run.write_corpus(tmp_path)
    sizes = {} if family is bert else {"hidden": 32, "gated": True}
    model = family(1, 2, 16, vocab_size=280, max_length=32, **sizes)
    experiment = tiny_run.experiment(tmp_path, model=model, objective=objective, steps=60)
    losses = [
        one["loss"] for one in run_training(experiment, tmp_path / "runs", cache).records() if one["kind"] == "train"
    ]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
