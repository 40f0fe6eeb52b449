"""Runs whose objective reads a frozen model: it is loaded once, stored once, and the same after a resume."""

import dataclasses
import shutil
import signal

import jax
import numpy as np
import pytest

from llm_jax import training_run
from llm_jax.assemble import assemble
from llm_jax.branch import Branch
from llm_jax.checkpoints.restore import FROZEN, STATE, saved_steps
from llm_jax.core.trees import named_leaves
from llm_jax.models import count
from llm_jax.starts.run_start import read_run, restored_weights
from llm_jax.train.step import StepConfig
from llm_jax.training_run import run_training
from tests.helpers import distillation, tiny_run
from tests.integration.outcome import final, records, starts


@pytest.fixture(scope="module")
def lab(tmp_path_factory, cache):
    """A folder with the corpus and the run of the teacher."""
    folder = tmp_path_factory.mktemp("frozen")
    tiny_run.write_corpus(folder)
    run_training(distillation.teacher(folder), folder / "runs", cache)
    return folder


@pytest.fixture(scope="module")
def student(lab):
    return distillation.student(lab, lab / "runs")


@pytest.fixture(scope="module")
def parts(student, cache):
    return assemble(student, cache)


@pytest.fixture(scope="module")
def finished(lab, student, cache):
    """The run of the student, without interruption."""
    return run_training(student, lab / "runs", cache)


def _leaves(tree):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree)}


def _assert_same(left, right):
    left, right = _leaves(left), _leaves(right)
    assert left.keys() == right.keys()
    for name, leaf in left.items():
        assert leaf.tobytes() == right[name].tobytes(), name


def test_the_teachers_weights_are_read_and_stay_as_they_are(finished, parts, lab):
    run = dataclasses.replace(finished, path=lab / "runs" / "teacher")
    experiment, tokenizer, step = read_run(run, None, False)
    taught = restored_weights(run, experiment, experiment.precision, tokenizer.digest, step).state
    _assert_same(parts.initial_state().frozen["teacher"], taught)
    state = final(finished, parts).state
    _assert_same(state.frozen["teacher"], taught)
    names = {name for name, _ in named_leaves((state.opt_state, state.ema))}
    assert not any("teacher" in name for name in names)


def test_the_student_learns_the_teachers_distribution(finished):
    trained = [record for record in records(finished) if record["kind"] == "train"]
    assert trained[-1]["loss"] < trained[0]["loss"] - 0.3
    scored = [record for record in records(finished) if record["kind"] == "eval/validation"]
    assert len(scored) == 2 and scored[0]["teacher"] == scored[1]["teacher"] < np.log(259)


def test_frozen_weights_are_stored_once(finished):
    folder = finished.checkpoints
    steps = saved_steps(folder)
    assert len(steps) > 1
    assert "teacher" in (folder / FROZEN / "_METADATA").read_text()
    assert not any("teacher" in (folder / str(step) / STATE / "_METADATA").read_text() for step in steps)
    written = max(path.stat().st_mtime for path in (folder / FROZEN).rglob("*"))
    assert written <= min(path.stat().st_mtime for path in (folder / str(steps[0]) / STATE).iterdir())


@pytest.fixture
def stopped(monkeypatch, lab, student, parts, cache, tmp_path):
    """A student's run that SIGTERM has stopped after step 7. What it started from is gone since."""
    runs = tmp_path / "runs"
    shutil.copytree(lab / "runs" / "teacher", runs / "teacher")
    student = distillation.student(lab, runs)

    class Step:
        lower = staticmethod(parts.programs.step.lower)

        def __call__(self, state, batch):
            if int(state.step) + 1 == 7:
                signal.raise_signal(signal.SIGTERM)
            return parts.programs.step(state, batch)

    used = dataclasses.replace(parts, experiment=student, programs=dataclasses.replace(parts.programs, step=Step()))
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "assemble", lambda *_: used)
        run = run_training(student, runs, cache)
    shutil.rmtree(runs / "teacher")
    assert saved_steps(run.checkpoints)[-1] == 7
    return run, student


def test_a_resumed_run_is_the_uninterrupted_one_without_the_teachers_run(stopped, finished, parts, cache):
    run, student = stopped
    run_training(student, run.path.parent, cache)
    assert starts(run) == [None, 7]
    assert records(run) == records(finished)
    _assert_same(final(run, parts).state, final(finished, parts).state)


def test_a_branch_takes_the_frozen_weights_along(stopped, finished, parts, cache, tmp_path):
    run, student = stopped
    branch = Branch.named(str(run.path), tmp_path)
    other = run_training(dataclasses.replace(student, name="other"), tmp_path / "runs", cache, branch=branch)
    shutil.rmtree(run.path)
    _assert_same(final(other, parts).state, final(finished, parts).state)


@pytest.mark.parametrize("damage", ["missing", "changed", "of another run"])
def test_damaged_frozen_weights_are_not_trained_with(stopped, cache, lab, tmp_path, damage):
    run, student = stopped
    folder = run.checkpoints / FROZEN
    if damage == "changed":
        largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(bytes(content))
    else:
        shutil.rmtree(folder)
    if damage == "of another run":
        other = distillation.student(lab, lab / "runs", name="other", steps=4)
        teacher = dataclasses.replace(distillation.teacher(lab), name="teacher 2", seed=1, steps=4)
        run_training(teacher, tmp_path, cache)
        start = dataclasses.replace(other.frozen[0].start, run=str(tmp_path / "teacher 2"))
        other = dataclasses.replace(other, frozen=(dataclasses.replace(other.frozen[0], start=start),))
        shutil.copytree(run_training(other, tmp_path, cache).checkpoints / FROZEN, folder)
    with pytest.raises(ValueError, match="no requested checkpoint .* can be used"):
        run_training(student, run.path.parent, cache)


def test_frozen_weights_of_a_start_that_saved_nothing_are_replaced(lab, finished, student, parts, cache, tmp_path):
    """As left by a process that is killed between the write of the frozen weights and that of the first checkpoint."""
    folder = tmp_path / "student" / "checkpoints" / FROZEN
    shutil.copytree(finished.checkpoints / FROZEN, folder)
    shutil.copy(finished.experiment_file, tmp_path / "student")
    next(path for path in folder.rglob("*") if path.is_file()).write_bytes(b"")
    run = run_training(student, tmp_path, cache)
    _assert_same(final(run, parts).state, final(finished, parts).state)


def test_microbatches_give_the_gradient_of_the_whole_batch(student, cache):
    changed = []
    for parts in (1, 2):
        made = assemble(dataclasses.replace(student, update=StepConfig(accumulate=parts), model=_plain(student)), cache)
        batch = made.place(next(made.dataset.train_iterator()))
        with made.programs.activated():
            state, report = made.programs.step(made.initial_state(), batch)
        changed.append((jax.device_get(report.gradient_norms), float(report.metrics["teacher"].mean)))
    assert changed[0][1] == pytest.approx(changed[1][1], rel=1e-6)
    norms = [np.asarray(jax.tree.leaves(found)) for found, _ in changed]
    # The gradients of keys' biases are 0 but for rounding.
    np.testing.assert_allclose(*norms, rtol=1e-4, atol=1e-5 * norms[0].max())


def _plain(student):
    """The student's model without dropout, whose masks depend on the microbatches."""
    return tiny_run.gpt2(layers=2, heads=2, width=16, vocab_size=259, max_length=64)


def test_flops_of_frozen_models_are_counted(student):
    forward = count.forward_flops(distillation.TEACHER, student.data.sequence_length)
    own = count.training_flops(student.model, student.data.sequence_length)
    assert student.training_flops == own + forward


def test_what_does_not_fit_is_refused(student, lab):
    other = dataclasses.replace(student.frozen[0], name="critic")
    with pytest.raises(ValueError, match="needs frozen models named teacher, and the experiment has no teacher"):
        dataclasses.replace(student, frozen=())
    with pytest.raises(ValueError, match="does not run the frozen models critic"):
        dataclasses.replace(student, frozen=(*student.frozen, other))
    with pytest.raises(ValueError, match="two models named teacher"):
        dataclasses.replace(student, frozen=student.frozen * 2)
    with pytest.raises(ValueError, match="does not run the frozen models teacher"):
        tiny_run.experiment(lab, frozen=student.frozen)
    small = dataclasses.replace(student.frozen[0], model=dataclasses.replace(distillation.TEACHER, max_length=8))
    with pytest.raises(ValueError, match="frozen model teacher.max_length is 8"):
        dataclasses.replace(student, frozen=(small,))
    with pytest.raises(ValueError, match="has the name 'my teacher'"):
        dataclasses.replace(other, name="my teacher")
