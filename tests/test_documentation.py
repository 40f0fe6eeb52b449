"""Every command that a reader is told to type parses, and every script can be read by its shell."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
import yaml

from llm_jax.cli import COMMANDS
from llm_jax.experiment import load_ablation, load_experiment

ROOT = Path(__file__).parent.parent
BEGINNINGS = ("llm-jax ", "bash launch/", "python experiments/", "python tests/")
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "launch").glob("*.md")),
    *sorted((ROOT / "launch").glob("*.sh")),
    *sorted((ROOT / "experiments").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.py")),
]
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")])

_PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b|\.\.\.")
_COMMENT = re.compile(r"\s+#.*|\s{2,}\(.*|\s+\[.*|\)$")


def commands(text: str) -> list[str]:
    """The commands of a text: lines, and what stands between backquotes, that begin like one."""
    candidates = re.findall(r"`([^`\n]+)`", text)
    for line in text.splitlines():
        line = re.sub(r"^[#\s$]*(Command:|\(or:)?\s*", "", line)
        candidates += [line, *re.findall(r"\(or: (.*?)\)", line)]
    found = []
    for candidate in candidates:
        candidate = re.sub(r"^(\w+=\S+\s+)+", "", candidate.strip())
        if candidate.startswith(BEGINNINGS) and "`" not in candidate:
            found.append(_COMMENT.sub("", candidate).strip())
    return found


def documented() -> list[tuple[str, str]]:
    """(file, command) of everything that can be typed as it stands; a command with a placeholder cannot."""
    pairs = {}
    for path in DOCUMENTS:
        for command in commands(path.read_text(encoding="utf-8")):
            if not _PLACEHOLDER.search(command):
                pairs[str(path.relative_to(ROOT)), command] = None
    return list(pairs)


def check_command(command: str) -> None:
    """Raises ValueError or SystemExit for a command that would not start."""
    words = shlex.split(command)
    if words[0] == "llm-jax":
        check_verb(words[1], words[2:])
    elif words[0] == "bash":
        if not (ROOT / words[1]).is_file():
            raise ValueError(f"there is no script {words[1]}")
        if words[1] == "launch/quickstart.sh":
            load_experiment(ROOT / "experiments" / "quickstart.py", words[2:])
    else:
        compile((ROOT / words[1]).read_text(encoding="utf-8"), words[1], "exec")


def check_verb(verb: str, words: list[str]) -> None:
    """Parses the options of a verb, and the overrides of the experiment it names."""
    if verb not in COMMANDS:
        raise ValueError(f"there is no verb {verb}")
    if not words:  # prose that names a verb
        return
    kind = getattr(importlib.import_module(f"llm_jax.cli.{verb}"), verb.capitalize())
    options, overrides = tyro.cli(kind, args=words, return_unknown_args=True)
    if verb == "ablate":
        load_ablation(ROOT / options.file, overrides)
    elif hasattr(options, "file"):
        load_experiment(ROOT / options.file, overrides)
    elif overrides:
        raise ValueError(f"{verb} has no options {overrides}")


def test_the_documents_hold_commands():
    files = {file for file, _ in documented()}
    assert {"README.md", "experiments/quickstart.py"} <= files
    texts = {command for _, command in documented()}
    assert {"bash launch/quickstart.sh", "llm-jax show experiments/quickstart.py"} <= texts
    assert 'llm-jax generate runs/quickstart --prompt "def main("' in texts


@pytest.mark.parametrize(("file", "command"), documented())
def test_the_command_parses(file, command):
    check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "llm-jax trian experiments/quickstart.py",
        "llm-jax train experiments/quickstrat.py",
        "llm-jax train experiments/quickstart.py --optimizer.peek-lr 1",
        "llm-jax train experiments/quickstart.py --steps many",
        "llm-jax generate runs/quickstart",
        "llm-jax generate runs/quickstart --prompt a --temprature 1",
        "bash launch/quikstart.sh",
        "bash launch/quickstart.sh --step 3",
        "python experiments/benchmarks/absent.py",
    ],
)
def test_a_command_that_would_not_start_is_seen(command):
    with pytest.raises((ValueError, SystemExit, OSError)):
        check_command(command)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Command: bash launch/test.sh         (or: llm-jax show a.py)", {"bash launch/test.sh", "llm-jax show a.py"}),
        ("llm-jax train a.py   # the same command resumes", {"llm-jax train a.py"}),
        ("#   bash launch/test.sh [arguments of pytest]", {"bash launch/test.sh"}),
        ("with `X=1 llm-jax report runs/a` it", {"llm-jax report runs/a"}),
        ("the llm-jax command", set()),
    ],
)
def test_commands_are_found_in_prose(text, found):
    assert set(commands(text)) == found


def test_the_command_of_the_pods_parses():
    job = yaml.safe_load((ROOT / "launch" / "gke.yaml").read_text(encoding="utf-8"))["spec"]["replicatedJobs"][0]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["command"] + container["args"]]
    check_command(shlex.join(words))
    assert f"--hosts.count={pods['completions']}" in words and pods["parallelism"] == pods["completions"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_read_by_its_shell(path):
    result = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_script_is_in_the_table():
    table = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{path.name}` |" in table for path in SCRIPTS)


@pytest.fixture
def clone(tmp_path):
    """The launch scripts in a folder of their own, so that what they write does not meet the real one."""
    shutil.copytree(ROOT / "launch", tmp_path / "clone" / "launch")
    shutil.copy(ROOT / "setup.py", tmp_path / "clone")
    return tmp_path / "clone"


def interpreter(folder: Path, version: str, fits: bool) -> Path:
    """A program that answers like a Python of some version."""
    path = folder / "fake-python"
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "Python {version}"; exit 0; fi\nexit {0 if fits else 1}\n'
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_an_old_python_is_refused_before_anything_is_written(clone, tmp_path, script):
    python = interpreter(tmp_path, "3.9.18", fits=False)
    environment = os.environ | {"PYTHON": str(python)}
    result = subprocess.run(["bash", clone / "launch" / script], env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr and "is Python 3.9.18" in result.stderr
    assert "PYTHON=" in result.stderr
    assert sorted(path.name for path in clone.iterdir()) == ["launch", "setup.py"]


def test_an_absent_python_is_refused(clone):
    environment = os.environ | {"PYTHON": "python-that-is-not-there"}
    command = ["bash", clone / "launch" / "quickstart.sh"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode != 0 and "absent" in result.stderr


def test_the_environment_works_from_any_directory_and_stays_in_the_clone(clone, tmp_path):
    script = f'source "{clone}/launch/environment.sh"; pwd; printenv TMPDIR MPLCONFIGDIR JAX_COMPILATION_CACHE_DIR'
    environment = os.environ | {"PYTHON": sys.executable}
    result = subprocess.run(["bash", "-c", script], cwd="/", env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, *others = result.stdout.splitlines()
    assert Path(first) == clone
    assert len(others) == 3 and all(Path(path).is_relative_to(clone) for path in others)
