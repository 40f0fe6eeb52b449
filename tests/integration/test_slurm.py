"""launch/slurm.sbatch on a real SLURM of two nodes."""

import os
import subprocess
import sys

import pytest

from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core.run_directory import RunDirectory
from tests.helpers import compiler, slurm_cluster, tiny_run
from tests.helpers.command_line import ENVIRONMENT, ROOT
from tests.integration.outcome import starts

pytestmark = pytest.mark.slow

PROGRAM = """#!/usr/bin/env bash
exec "{python}" -m llm_jax "$@"
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which sbatch reaches the cluster and `llm-jax` is this package."""
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    program = folder / "bin" / "llm-jax"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    with slurm_cluster.running(folder / "cluster") as environment:
        path = os.pathsep.join([str(program.parent), environment["PATH"]])
        yield environment | ENVIRONMENT | compiler.devices(2) | {"PATH": path}


def sbatch(environment: dict[str, str], *words: object) -> tuple[int, str]:
    """Submits launch/slurm.sbatch and waits for the job: its exit code and output."""
    output = words[-1]
    command = ["sbatch", "--wait", f"--output={output}", "launch/slurm.sbatch", *map(str, words[:-1])]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return result.returncode, (output.read_text() if output.exists() else "") + result.stderr


def test_the_batch_script_trains_on_two_nodes_and_resumes(slurm, tmp_path):
    file = tiny_run.write_experiment(tmp_path / "lab")
    words = (file, "--runs-dir", tmp_path / "runs", "--cache-dir", tmp_path / "cache", "--data.batch-size", 8)
    run = RunDirectory(tmp_path / "runs" / "tiny")
    code, said = sbatch(slurm, *words, tmp_path / "first.out")
    assert code == 0, said[-3000:]
    assert "The run is complete" in said and saved_steps(run.checkpoints)[-1] == 12
    card = run.card()["starts"][0]
    assert (card["process_count"], card["device_count"]) == (2, 4)
    trained = [record["step"] for record in run.records() if record["kind"] == "train"]
    assert trained == list(range(1, 13))
    code, said = sbatch(slurm, *words, tmp_path / "second.out")
    assert code == 0 and "The run is complete" in said and starts(run) == [None]


def test_a_mistake_ends_the_job_with_its_message(slurm, tmp_path):
    file = tiny_run.write_experiment(tmp_path / "lab")
    code, said = sbatch(slurm, file, "--runs-dir", tmp_path / "runs", "--steps", 0, tmp_path / "mistake.out")
    assert code != 0 and "steps is 0: it must be greater than 0" in said
