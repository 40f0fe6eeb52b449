"""experiments/examples/own_parts.py: components of a user's own through everything that a run goes through."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from llm_jax.checkpoints.restore import best_step, readable_records, saved_steps
from llm_jax.core.run_directory import RunDirectory
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.trained_model import TrainedModel
from tests.helpers import command_line, compiler, tiny_run
from tests.helpers.command_line import llm_jax

OWN_PARTS = Path(__file__).parents[2] / "experiments" / "examples" / "own_parts.py"
FILE = '''"""The example on a few sentences."""

import dataclasses
from pathlib import Path

import own_parts
from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.data import CorpusConfig, DataConfig, HashSplit, TextFilesConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.optim import AdamWConfig, Constant


def experiment():
    corpus = CorpusConfig(TextFilesConfig((str(Path(__file__).parent / "corpus"),)), split=HashSplit(0.2, 0.2))
    return dataclasses.replace(
        own_parts.experiment(),
        name="mine",
        steps=8,
        optimizer=AdamWConfig(peak_lr=1e-2, schedule=Constant(warmup_steps=2)),
        data=DataConfig(corpus, sequence_length=16, batch_size=8),
        checkpoint=CheckpointConfig(every=4, best_metric="copying/error"),
        evaluations=(PerplexityConfig(every=4), own_parts.CopyingConfig(every=2)),
        hooks=(own_parts.RatesConfig(every=2),),
        log_every=1,
    )
'''
DIVIDED = '''"""The same over eight devices."""

import dataclasses

import mine
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import Combined, FullySharded, ShardingConfig, TensorParallel


def experiment():
    sharding = ShardingConfig(MeshConfig(data=2, fsdp=2, tensor=2), Combined(FullySharded(), TensorParallel()))
    return dataclasses.replace(mine.experiment(), name="divided", sharding=sharding)
'''
STEPS = 30
LONGER = ("--steps", STEPS)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with the example, an experiment file that imports it, and a corpus."""
    folder = tmp_path_factory.mktemp("own")
    tiny_run.write_corpus(folder)
    shutil.copy(OWN_PARTS, folder / "own_parts.py")
    (folder / "mine.py").write_text(FILE)
    (folder / "divided.py").write_text(DIVIDED)
    return folder


def command(lab, runs, *words):
    return ("train", lab / "mine.py", "--runs-dir", runs, "--cache-dir", lab / "cache", *words)


@pytest.fixture(scope="module")
def run(lab):
    assert llm_jax(*command(lab, lab / "runs")).code == 0
    return RunDirectory(lab / "runs" / "mine")


@pytest.fixture(scope="module")
def killed(lab):
    """A longer run, killed after its first checkpoint."""
    process = command_line.start(*command(lab, lab / "killed", *LONGER))
    run = RunDirectory(lab / "killed" / "mine")
    while not saved_steps(run.checkpoints):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert saved_steps(run.checkpoints)[-1] < STEPS
    return run


def losses(run):
    return {record["step"]: record["loss"] for record in run.records() if record["kind"] == "train"}


def test_it_trains_and_its_hook_records(run):
    found = losses(run)
    assert found[8] < found[1] - 0.2
    memory = [record for record in run.records() if record["kind"] == "memory"]
    assert [record["step"] for record in memory] == [2, 4, 6, 8]
    assert all(1 <= record["shortest"] < record["longest"] < 200 for record in memory)


def errors(run):
    return {record["step"]: record["error"] for record in run.records() if record["kind"] == "eval/copying"}


def test_its_evaluation_is_recorded_and_decides_which_checkpoint_is_the_best(run):
    found = errors(run)
    assert list(found) == [2, 4, 6, 8] and all(0.5 < error <= 1 for error in found.values())
    records = readable_records(run.checkpoints)
    assert {step: record.metrics["copying/error"] for step, record in records.items()} == {4: found[4], 8: found[8]}
    assert "validation/loss" in records[4].metrics
    best = TrainedModel.of(run, best=True)
    assert best_step(run.checkpoints, "copying/error") == min(sorted(records, reverse=True), key=found.get)
    assert best.experiment.checkpoint.best_metric == "copying/error"


def test_a_run_that_was_killed_resumes_bit_for_bit(lab, killed, tmp_path):
    shutil.copytree(killed.path, tmp_path / "resumed" / "mine")
    for runs in ("resumed", "whole"):
        assert llm_jax(*command(lab, tmp_path / runs, *LONGER)).code == 0
    resumed, whole = (RunDirectory(tmp_path / runs / "mine") for runs in ("resumed", "whole"))
    assert resumed.card()["starts"][-1]["resumed_from"] == saved_steps(killed.checkpoints)[-1]
    assert losses(resumed) == losses(whole) and len(losses(whole)) == STEPS
    assert errors(resumed) == errors(whole) and len(errors(whole)) == STEPS // 2


def test_the_file_and_what_it_imports_are_kept(lab, run):
    assert {path.name for path in run.source.iterdir()} == {"mine.py", "own_parts.py", "manifest.json"}
    assert (run.source / "own_parts.py").read_bytes() == OWN_PARTS.read_bytes()


def test_generation_and_report_use_the_copy(run, tmp_path, monkeypatch):
    for name in ("own_parts", "experiment_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    moved = tmp_path / "moved"
    shutil.copytree(run.path, moved)
    outcome = llm_jax("generate", moved, "--prompt", "the red", "--new-tokens", 4)
    assert outcome.code == 0 and outcome.out.startswith("the red")
    assert llm_jax("report", moved).code == 0 and "MovingAverageConfig" in (moved / "report.md").read_text()
    shutil.rmtree(moved / "source")
    outcome = llm_jax("generate", moved, "--prompt", "the red")
    assert outcome.code == 1 and "own_parts.MovingAverageConfig, which cannot be imported" in outcome.said


def test_generation_with_its_state_is_the_whole_sequence(run):
    """Scores of a token do not depend on whether the tokens before it came in this call or in earlier ones."""
    trained = TrainedModel.of(run)
    prompt = trained.experiment.prompt(trained.tokenizer, "the quick green fox")
    generator = Generator(trained.model, SamplingConfig(temperature=0.0), eos_id=None, pad_id=trained.tokenizer.pad_id)
    (whole,) = generator.generate(trained.params, [prompt], 6, seed=0)
    for made in range(1, 6):
        (rest,) = generator.generate(trained.params, [prompt + list(whole[:made])], 6 - made, seed=0)
        assert list(rest) == list(whole[made:])


def test_export_is_refused_by_name(run, tmp_path):
    outcome = llm_jax("convert", run.path, tmp_path / "out")
    assert outcome.code == 1 and "components of your own (MovingAverageConfig)" in outcome.said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def changed(lab):
    """The file of the components with another line; as it was, afterwards."""
    file = lab / "own_parts.py"
    file.write_text(file.read_text().replace("(1 - a_R) * value_BTR", "value_BTR"))
    yield
    shutil.copy(OWN_PARTS, file)


def test_code_that_has_changed_is_refused_with_a_difference(lab, killed, changed, tmp_path):
    run = RunDirectory(tmp_path / "mine")
    shutil.copytree(killed.path, run.path)
    before = saved_steps(run.checkpoints)
    outcome = llm_jax(*command(lab, tmp_path, *LONGER))
    assert outcome.code == 1 and "has changed since" in outcome.said and "--accept-changes" in outcome.said
    assert "- input_BTR = jnp.where(real_BT1, (1 - a_R) * value_BTR, 0)" in outcome.said
    assert "+ input_BTR = jnp.where(real_BT1, value_BTR, 0)" in outcome.said
    assert saved_steps(run.checkpoints) == before and "(1 - a_R)" in (run.source / "own_parts.py").read_text()


def test_code_that_has_changed_can_be_accepted(lab, killed, changed, tmp_path):
    run = RunDirectory(tmp_path / "mine")
    shutil.copytree(killed.path, run.path)
    (former,) = (start["code"] for start in run.card()["starts"])
    outcome = llm_jax(*command(lab, tmp_path, *LONGER, "--accept-changes"))
    assert outcome.code == 0, outcome.said
    assert "(1 - a_R) * value" not in (run.source / "own_parts.py").read_text()
    assert "(1 - a_R) * value" in (run.path / f"source-{former}" / "own_parts.py").read_text()
    assert any(line.startswith(f"code: {former} -> ") for line in run.card()["starts"][-1]["changes"])
    assert llm_jax(*command(lab, tmp_path, *LONGER)).code == 0  # the new code is the run's own


def test_devices_divide_it(lab, run):
    """FSDP and tensor parallelism over eight devices give the losses of one."""
    words = ("--runs-dir", lab / "divided", "--cache-dir", lab / "cache")
    process = command_line.start("train", lab / "divided.py", *words, environment=compiler.devices(8))
    outcome = command_line.wait(process)
    assert outcome.code == 0, outcome.err[-2000:]
    assert losses(RunDirectory(lab / "divided" / "divided")) == pytest.approx(losses(run), rel=1e-4)


def test_the_table_of_shardings_names_its_parameters(lab):
    outcome = llm_jax("shardings", lab / "divided.py", "--devices", 8)
    assert outcome.code == 0 and "mixer/rate" in outcome.out and "mixer/gate/kernel" in outcome.out


def test_the_card_names_the_code(run):
    (start,) = json.loads(run.card_file.read_text())["starts"]
    assert len(start["code"]) == 16
