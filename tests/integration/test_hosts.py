"""Real processes that train together: killed, stopped by a signal, restarted in other numbers and layouts."""

import collections
import json
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core.run_directory import RunDirectory
from llm_jax.experiment import load_experiment
from llm_jax.training_run import run_training
from tests.helpers import tiny_run
from tests.helpers.host_processes import start_hosts, wait_hosts
from tests.integration.outcome import starts

pytestmark = pytest.mark.slow

STEPS, BATCH = 30, 24
FILE = f"""
import dataclasses
import os
from pathlib import Path
from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import SampleConfig
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import DataParallel, FullySharded, ShardingConfig
from tests.helpers import tiny_run

LAYOUTS = {{
    "data": ShardingConfig(MeshConfig(), DataParallel()),
    "fsdp": ShardingConfig(MeshConfig(fsdp=2), FullySharded()),
}}

def experiment():
    tiny = tiny_run.experiment(
        Path(__file__).parent,
        steps={STEPS},
        checkpoint=CheckpointConfig(every=5),
        evaluations=(PerplexityConfig(every=10, max_bytes=300, test=True),),
        samples=SampleConfig(prompts=("the ", "a fox"), every={STEPS}, new_tokens=4),
        sharding=LAYOUTS[os.environ.get("LAYOUT", "data")],
    )
    return dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, batch_size={BATCH}, read_ahead=0))
"""


def _act_when(processes: list[subprocess.Popen], ready: Callable[[], bool], act: Callable[[], None]) -> float:
    """Calls `act` once `ready`, if the processes live; the time of it."""
    give_up = time.monotonic() + 200
    while not ready():
        late = time.monotonic() > give_up
        for process in processes if late else ():
            process.kill()
        assert not late and all(process.poll() is None for process in processes), wait_hosts(processes)
        time.sleep(0.01)
    act()
    return time.monotonic()


def _made(run: RunDirectory) -> int:
    return max((record["step"] for record in run.records()), default=0)


@pytest.fixture(scope="module")
def story(tmp_path_factory, cache):
    """One run: three hosts of which one is killed, then two of which one gets SIGTERM, then two in another layout."""
    folder = tmp_path_factory.mktemp("hosts")
    tiny_run.write_corpus(folder)
    file = folder / "experiment.py"
    file.write_text(FILE)
    run, words = RunDirectory(folder / "tiny"), (file, "--runs-dir", folder, "--cache-dir", folder / "cache")
    facts = {"folder": folder, "file": file, "run": run, "words": words}

    three = start_hosts(3, 2, *words, slow=1, LAYOUT="fsdp")
    killed = _act_when(three, lambda: saved_steps(run.checkpoints) and _made(run) >= 7, three[2].kill)
    facts["killed"] = wait_hosts(three)
    facts["seconds to end"] = time.monotonic() - killed
    facts["saved before"] = saved_steps(run.checkpoints)

    two = start_hosts(2, 2, *words, slow=1, LAYOUT="data")
    late = saved_steps(run.checkpoints)[-1] + 6
    _act_when(two, lambda: _made(run) >= late, lambda: two[1].send_signal(signal.SIGTERM))
    facts["stopped"] = wait_hosts(two)
    facts["saved at stop"], facts["made at stop"] = saved_steps(run.checkpoints)[-1], _made(run)

    facts["finished"] = wait_hosts(start_hosts(2, 1, *words, facts=folder, LAYOUT="fsdp"))
    return facts


@pytest.fixture(scope="module")
def alone(story, cache):
    """The same run by one process with one device, never interrupted."""
    return run_training(load_experiment(story["file"]), story["folder"] / "alone", cache)


def test_a_killed_host_ends_all_within_seconds_with_its_name(story):
    codes = [outcome.code for outcome in story["killed"]]
    assert codes[2] == -signal.SIGKILL and codes[:2] == [1, 1], story["killed"]
    assert story["seconds to end"] < 20
    for host in (0, 1):
        assert "is lost: its process has ended. All hosts stop" in story["killed"][host].said
        assert "host 2 (" in story["killed"][host].said


def test_a_signal_on_one_host_stops_all_after_the_same_step_with_a_checkpoint(story):
    assert [outcome.code for outcome in story["stopped"]] == [0, 0], story["stopped"]
    assert "stopped by SIGTERM on host 1 (" in story["stopped"][0].said
    assert "and saved; the same command resumes" in story["stopped"][0].said
    assert story["saved at stop"] == story["made at stop"] < STEPS


def test_other_numbers_of_hosts_and_other_layouts_continue_the_losses(story, alone):
    assert [outcome.code for outcome in story["finished"]] == [0, 0], story["finished"]
    assert starts(story["run"]) == [None, story["saved before"][-1], story["saved at stop"]]
    cards = story["run"].card()["starts"]
    assert [card["process_count"] for card in cards] == [3, 2, 2]
    assert [card["mesh"]["fsdp"] for card in cards] == [2, 1, 2]
    for kind, field in (
        ("train", "loss"),
        ("train", "gradient_norm"),
        ("eval/validation", "loss"),
        ("eval/test", "loss"),
    ):
        curves = [
            {record["step"]: record[field] for record in run.records() if record["kind"] == kind}
            for run in (story["run"], alone)
        ]
        assert curves[0].keys() == curves[1].keys() and curves[0]
        assert curves[0] == pytest.approx(curves[1], rel=1e-5), kind
    losses = [record["loss"] for record in alone.records() if record["kind"] == "train"]
    assert len(losses) == STEPS and losses[-1] < losses[0] - 0.5


def test_every_host_reads_its_rows_only(story):
    read = [json.loads((story["folder"] / f"rows.{host}.json").read_text()) for host in (0, 1)]
    first = story["saved at stop"] * BATCH
    for host in (0, 1):
        share = [row for row in range(first, STEPS * BATCH) if row % BATCH // (BATCH // 2) == host]
        assert read[host] == share


def test_one_host_writes_and_the_others_are_silent(story, alone):
    run, records = story["run"], story["run"].metrics_file.read_text().splitlines()
    kinds = collections.Counter((json.loads(line)["kind"], json.loads(line)["step"]) for line in records)
    assert kinds["eval/test", STEPS] == 1 and kinds["train", STEPS] == 1
    assert [path.name for path in run.samples.iterdir()] == [f"step_{STEPS:08d}.md"]
    assert "Its report" in story["finished"][0].out and run.report.exists()
    for outcome in (*story["killed"][1:], *story["stopped"][1:], *story["finished"][1:]):
        assert "step " not in outcome.said.replace("step_", "") and "report" not in outcome.said
    assert len(list(run.tensorboard.iterdir())) == len(list(alone.tensorboard.iterdir())) + 2


def test_the_samples_are_those_of_one_process(story, alone):
    name = f"step_{STEPS:08d}.md"
    assert (story["run"].samples / name).read_text() == (alone.samples / name).read_text()


def test_a_straggler_is_measured_and_named(story):
    found = [record for record in story["run"].records() if record["kind"] == "hosts"]
    assert found[-1]["step"] == STEPS
    # Three hosts made step 2 and 3 in the first start; where a hook is due, no batch is fetched between two records.
    slowed = [record for record in found if record["step"] in (2, 3)]
    assert len(slowed) == 2 and {record["slowest"] for record in slowed} == {1}
    for record in slowed:
        assert record["data_seconds_max"] - record["data_seconds_median"] > 0.25
        assert record["data_seconds_max"] >= 0.5 and record["data_seconds_median"] >= record["data_seconds_min"] >= 0
        assert record["seconds_max"] >= record["seconds_median"] >= record["seconds_min"] > 0
    assert "all hosts wait for host 1 (" in story["killed"][0].said
    assert "all hosts wait" not in story["killed"][2].said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizer.peak-lr", 0.5), "do not agree on the experiment; compared with host 0: host 1 ("),
        (("--optimizer.peek-lr", 1), "stopped: its options or its experiment ended it with code 2; its own output"),
    ],
)
def test_a_host_with_another_experiment_or_none_ends_all_with_the_reason(tmp_path, words, message):
    file = tiny_run.write_experiment(tmp_path / "lab")
    folders = ("--runs-dir", tmp_path / "runs", "--cache-dir", tmp_path / "cache")
    outcomes = wait_hosts(start_hosts(2, 1, file, *folders, last=words), 100)
    assert all(outcome.code not in (0, None) for outcome in outcomes)
    assert message in outcomes[0].said, outcomes
    assert not (tmp_path / "runs").exists()
