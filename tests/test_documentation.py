"""Every command that a reader is told to type parses, every snippet of Python runs, every link leads somewhere, and
every script can be read by its shell."""

import abc
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import pytest
import tyro
import yaml

from llm_jax.assemble import assemble
from llm_jax.cli import COMMANDS
from llm_jax.core.components import is_kind
from llm_jax.experiment import load_ablation, load_experiment
from llm_jax.interop import save_hf
from llm_jax.models.build import build, initial_parameters
from llm_jax.tokenizers.tokenizer import DIGEST_KEY
from llm_jax.training_run import run_training
from tests.test_structure import LEVEL

ROOT = Path(__file__).parent.parent
BEGINNINGS = ("llm-jax ", "bash launch/", "python experiments/", "python tests/", "python -m pytest ")
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "llm_jax").rglob("*.md")),
    *sorted((ROOT / "tests").rglob("*.md")),
    *sorted((ROOT / "launch").glob("*.md")),
    *sorted((ROOT / "launch").glob("*.sh")),
    *sorted((ROOT / "experiments").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.py")),
]
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")])

TEXTS = {
    f"{number:02}": f"Once there were {number} foxes. They slept under tree {number}." * 20 for number in range(40)
}
SHORT = shlex.split(
    "--steps 8 --log-every 1 --data.sequence-length 32 --data.batch-size 4 --evaluations.0.max-bytes 500 "
    "--optimizer.schedule.warmup-steps 1"
)

_SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
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


def snippets() -> list[tuple[str, str]]:
    """(file, Python) of every block of Python in a document."""
    pages = [path for path in DOCUMENTS if path.suffix == ".md"]
    return [
        (str(path.relative_to(ROOT)), block)
        for path in pages
        for block in _SNIPPET.findall(path.read_text(encoding="utf-8"))
    ]


def saved_as(snippet: str) -> str | None:
    """The name of the file that a reader is told to save a snippet as, which is a comment in its first line."""
    name = re.match(r"# (\w+\.py)\n", snippet)
    return name[1] if name else None


def anchors(text: str) -> set[str]:
    """Of the headings of a document, as they are linked to."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reader's folder: texts, the files of the snippets, and a model in the format of transformers."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "texts").mkdir()
    for name, text in TEXTS.items():
        (folder / "texts" / f"{name}.txt").write_text(text)
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS.values()))
    files = [(saved_as(snippet), snippet) for _, snippet in snippets() if saved_as(snippet)]
    assert len(dict(files)) == len(files), "two snippets are saved as one file"
    for name, snippet in files:
        (folder / name).write_text(snippet)
    experiment = load_experiment(folder / "my_text.py")
    model, tokenizer = build(experiment.model), experiment.tokenizer.build(lambda: (), folder / "cache", "")
    params = nn.unbox(jax.jit(lambda key: initial_parameters(model, key))(jax.random.key(0)))
    save_hf(model, params, folder / "published", tokenizer=tokenizer)
    # As of a folder that another program wrote.
    path = folder / "published" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings[DIGEST_KEY]
    path.write_text(json.dumps(settings))
    return folder


@pytest.fixture
def reader(folder, monkeypatch):
    """The reader's folder, in which commands and snippets run."""
    monkeypatch.chdir(folder)
    return folder


def check_command(command: str) -> None:
    """Raises ValueError or SystemExit for a command that would not start in the reader's folder."""
    words = shlex.split(command)
    if words[0] == "llm-jax":
        check_options(words[1], words[2:])
    elif words[0] == "bash":
        if not (ROOT / words[1]).is_file():
            raise ValueError(f"there is no script {words[1]}")
        if words[1] == "launch/quickstart.sh":
            load_experiment(ROOT / "experiments" / "quickstart.py", words[2:])
    elif words[:3] == ["python", "-m", "pytest"]:
        absent = [word for word in words[3:] if word.startswith("tests") and not (ROOT / word).exists()]
        if absent:
            raise ValueError(f"there are no tests {absent}")
    else:
        compile((ROOT / words[1]).read_text(encoding="utf-8"), words[1], "exec")


def check_options(name: str, words: list[str]) -> None:
    """Parses the options of a command, and the overrides of the experiment it names."""
    if name not in COMMANDS:
        raise ValueError(f"there is no command {name}")
    if not words:  # prose that names a command
        return
    kind = getattr(importlib.import_module(f"llm_jax.cli.{name}"), name.capitalize())
    options, overrides = tyro.cli(kind, args=words, return_unknown_args=True)
    if name == "ablate":
        load_ablation(_found(options.file), overrides)
    elif hasattr(options, "file"):
        load_experiment(_found(options.file), overrides)
    elif overrides:
        raise ValueError(f"{name} has no options {overrides}")


def _found(file: Path) -> Path:
    """A file of the reader's, or of the repository."""
    return file.absolute() if file.exists() else ROOT / file


def test_the_documents_hold_commands():
    files = {file for file, _ in documented()}
    assert {"README.md", "experiments/quickstart.py"} <= files
    texts = {command for _, command in documented()}
    assert {"bash launch/quickstart.sh", "llm-jax show my_text.py --steps 200 --optimizer.peak-lr 3e-4"} <= texts
    assert 'llm-jax generate runs/my_text --prompt "Once"' in texts


@pytest.mark.parametrize(("file", "command"), documented())
def test_the_command_parses(reader, file, command):
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
        "python -m pytest tests/absent",
        "llm-jax train my_txt.py",
        "llm-jax train my_text.py --optimizer moun",
    ],
)
def test_a_command_that_would_not_start_is_seen(reader, command):
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


@pytest.mark.parametrize(("file", "snippet"), snippets())
def test_the_snippet_runs(reader, file, snippet):
    name = saved_as(snippet)
    if name is None:
        exec(compile(snippet, file, "exec"), {"__name__": "snippet"})
    elif "def variants()" in snippet:
        assert len(load_ablation(reader / name).variants) > 1
    else:
        experiment = load_experiment(reader / name)
        assert experiment.name == Path(name).stem


@pytest.mark.parametrize("name", ["my_text", "my_lines", "my_finetune"])
def test_the_experiment_reads_the_text(reader, name, tmp_path):
    if name == "my_finetune":
        pytest.importorskip("tokenizers")
    parts = assemble(load_experiment(reader / f"{name}.py"), tmp_path)
    row = next(parts.dataset.train_iterator())
    tokens_T, segments_T = row["tokens"][0], row["segment_ids"][0]
    read = [parts.tokenizer.decode(tokens_T[segments_T == number].tolist()) for number in {*segments_T.tolist()} - {0}]
    assert read and all(any(text and text in document for document in TEXTS.values()) for text in read), read


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my_text", "my_parts"])
def test_the_experiment_trains(reader, name, tmp_path):
    experiment = load_experiment(reader / f"{name}.py", SHORT)
    run = run_training(experiment, tmp_path / "runs", tmp_path / "cache")
    losses = [record["loss"] for record in run.records() if record["kind"] == "train"]
    assert len(losses) == experiment.steps and losses[-1] < losses[0] - 0.1


def test_links_lead_somewhere():
    lost = []
    for path in (path for path in DOCUMENTS if path.suffix == ".md"):
        for link in _LINK.findall(path.read_text(encoding="utf-8")):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            if "://" in link or (target.exists() and not anchor):
                continue
            if not target.is_file() or anchor not in anchors(target.read_text(encoding="utf-8")):
                lost.append(f"{path.relative_to(ROOT)}: {link}")
    assert lost == []


def test_packages_stand_in_the_order_of_imports():
    text = (ROOT / "llm_jax" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "llm_jax").glob("*/__init__.py")}
    assert set(listed) == folders and len(listed) == len(folders)
    assert [LEVEL[name] for name in listed] == sorted(LEVEL[name] for name in listed)


def test_every_kind_of_component_is_listed_where_it_is_defined():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| kind | base |")[2].partition("\n\n")[0]
    listed = [
        getattr(importlib.import_module(module), name)
        for names, module in re.findall(r"((?:`\w+`,? )+)in `([\w.]+)`", table)
        for name in re.findall(r"`(\w+)`", names)
    ]
    modules = [vars(module) for name, module in sorted(sys.modules.items()) if name.startswith("llm_jax.")]
    kinds = {one for module in modules for one in module.values() if is_kind(one) and abc.ABC in one.__bases__}
    assert set(listed) == kinds


def test_words_of_the_glossary_are_those_of_the_code():
    text = (ROOT / "llm_jax" / "README.md").read_text(encoding="utf-8")
    glossary = text.partition("## Glossary")[2]
    words = {
        word for line in re.findall(r"^\| (`.*?) \|", glossary, re.MULTILINE) for word in re.findall(r"`(.+?)`", line)
    }
    code = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "llm_jax").rglob("*.py"))
    assert len(words) > 20
    assert [word for word in sorted(words) if not re.search(rf"\b{re.escape(word)}\b", code)] == []


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
