"""An ablation is one command: it trains, says what differs by how much, and does not train twice."""

import pytest

from llm_jax.core.run_directory import RunDirectory
from tests.helpers import tiny_run
from tests.helpers.command_line import llm_jax

FILE = '''"""Tiny variants, for tests."""

import dataclasses
from pathlib import Path

from tests.helpers import tiny_run


def variants():
    base = tiny_run.experiment(Path(__file__).parent)
    fast = dataclasses.replace(base.optimizer, peak_lr=3e-2)
    return {"base": base, "fast": dataclasses.replace(base, optimizer=fast)}
'''


@pytest.fixture
def ablate(tmp_path, cache):
    tiny_run.write_corpus(tmp_path / "lab")
    file = tmp_path / "lab" / "rates.py"
    file.write_text(FILE)
    (tmp_path / "README.md").write_text("<!-- rates -->\n<!-- /rates -->\n")
    options = ("--runs-dir", tmp_path / "runs", "--cache-dir", cache)
    return lambda *words: llm_jax("ablate", file, *options, *words)


def test_variants_are_trained_compared_and_published(ablate, tmp_path):
    outcome = ablate("--seeds", 2, "--publish", tmp_path / "README.md", "--steps", 6)
    assert outcome.code == 0, outcome.err
    names = {"base-0", "base-1", "fast-0", "fast-1"}
    found = {path.parent.name: RunDirectory(path.parent) for path in (tmp_path / "runs").rglob("experiment.txt")}
    assert set(found) == names
    experiments = {name: run.experiment() for name, run in found.items()}
    assert all(one.steps == 6 and one.name == name for name, one in experiments.items())
    assert [experiments[name].seed for name in sorted(names)] == [0, 1, 0, 1]
    assert [experiments[name].optimizer.peak_lr for name in sorted(names)] == [1e-2, 1e-2, 3e-2, 3e-2]
    assert outcome.out.count("| 2 |") == 2 and "fast" in outcome.out and "±" in outcome.out
    published = (tmp_path / "README.md").read_text()
    assert "llm-jax ablate" in published and "(lab/rates_loss.png)" in published
    assert (tmp_path / "lab" / "rates_loss.png").stat().st_size > 1000
    before = {name: run.metrics_file.read_bytes() for name, run in found.items()}
    again = ablate("--seeds", 2, "--steps", 6)
    assert again.code == 0 and again.out == outcome.out
    assert before == {name: run.metrics_file.read_bytes() for name, run in found.items()}, "nothing was trained again"


def test_what_cannot_be_compared_is_refused(ablate, tmp_path):
    outcome = ablate("--only", "slow")
    assert outcome.code != 0 and "--only has ['slow']: the variants are ['base', 'fast']" in outcome.said
    outcome = ablate("--seeds", 0)
    assert outcome.code != 0 and "seeds is 0: it must be greater than 0" in outcome.said
    (tmp_path / "bare.md").write_text("# Results")
    outcome = ablate("--publish", tmp_path / "bare.md")
    assert outcome.code != 0 and "bare.md has no markers <!-- rates -->" in outcome.said
    assert not list((tmp_path / "runs").rglob("experiment.txt")), "nothing was trained for it"
    (tmp_path / "none.py").write_text("x = 1")
    outcome = llm_jax("ablate", tmp_path / "none.py")
    assert outcome.code != 0 and "defines no function variants()" in outcome.said


def _outcomes(text):
    """Outcome of every run in the section on those that did not finish, by (variant, seed)."""
    section = text.partition("## Runs that did not finish")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {(row[0], row[1]): (row[2], row[3]) for row in rows[2:]}


UNSOUND = """
def with_unsound():
    found = sound()
    base = found["base"]
    wild = dataclasses.replace(base.optimizer, peak_lr=1e30, clip_norm=None)
    missing = tiny_run.experiment(Path(__file__).parent / "absent")
    return {
        "wild": dataclasses.replace(base, optimizer=wild, checkpoint=dataclasses.replace(base.checkpoint, every=1)),
        "missing": dataclasses.replace(missing, name="missing"),
        **found,
    }

sound, variants = variants, with_unsound
"""


def test_runs_that_diverge_fail_or_are_killed_are_results_and_the_others_go_on(ablate, tmp_path):
    file = tmp_path / "lab" / "rates.py"
    file.write_text(FILE + UNSOUND)
    outcome = ablate("--seeds", 1, "--steps", 6)
    assert outcome.code == 0, outcome.said
    found = _outcomes(outcome.out)
    assert {cell: how for cell, (how, _) in found.items()} == {("wild", "0"): "diverged", ("missing", "0"): "failed"}
    assert "No complete run at all: wild, missing" in outcome.out and "is not finite" in outcome.out
    complete = [line for line in outcome.out.partition("## Runs")[0].splitlines() if "| 1 |" in line]
    assert [line.split("|")[1].strip() for line in complete] == ["base", "fast"]
    runs = tmp_path / "runs" / "rates"
    names = ("wild-0", "base-0", "fast-0")
    ended = [RunDirectory(runs / name).card()["starts"][-1]["ended"]["how"] for name in names]
    assert ended == ["diverged", "finished", "finished"]
    wild = RunDirectory(runs / "wild-0")
    before = wild.metrics_file.read_bytes()

    # A process that is killed leaves a start that nothing ends: twice in one place, and that is its result.
    killed = RunDirectory(runs / "base-0")
    (start,) = killed.card()["starts"]
    killed.delete()
    experiment = wild.experiment()
    killed.open(experiment)
    for _ in range(2):
        killed.write_card(**{name: value for name, value in start.items() if name != "ended"})
    again = ablate("--seeds", 1, "--steps", 6)
    assert again.code == 0, again.said
    assert {cell: how for cell, (how, _) in _outcomes(again.out).items()} == {
        ("wild", "0"): "diverged",
        ("missing", "0"): "failed",
        ("base", "0"): "killed",
    }
    assert wild.metrics_file.read_bytes() == before, "what has diverged is not trained again"
    (killed.path / "card.json").unlink()
    with RunDirectory(runs / "fast-0").locked(print):
        held = ablate("--seeds", 1, "--steps", 6, "--only", "base", "fast")
    assert held.code == 0 and _outcomes(held.out) == {("fast", "0"): ("running", "6")}


def test_folders_of_another_experiment_are_refused_before_anything_is_trained(ablate, tmp_path):
    assert ablate("--seeds", 1, "--steps", 6, "--only", "fast").code == 0
    outcome = ablate("--seeds", 1, "--steps", 6, "--data.batch-size", 8)
    assert outcome.code != 0 and "data.batch_size: 4 -> 8" in outcome.said and "fast-0" in outcome.said
    assert not (tmp_path / "runs" / "rates" / "base-0").exists()
