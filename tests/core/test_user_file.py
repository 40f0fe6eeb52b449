"""A mistake in a user's file comes back as one message that points at the line; modules beside the file import."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from llm_jax.core.user_file import call, run_file, user_code


def run(file: Path):
    with user_code(file.parent):
        return call(run_file(file), "experiment", "an Experiment")


IMPORTS = "import llm_jax.optim\nfrom llm_jax.optim import AdamWConfig\nfrom llm_jax.models.families.gpt2 import gpt2\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "AdamWConfig(peak_lr=1e-3",
            "'(' was never closed\n    return AdamWConfig(peak_lr=1e-3\n                      ^",
        ),
        ("AdamWConfig(peak_lr=", ""),
        (
            "AdamWConfig(peek_lr=1e-3)",
            "AdamWConfig has no argument 'peek_lr'; did you mean 'peak_lr'?; it has peak",
        ),
        ("llm_jax.optim.AdamWConfig(peek_lr=1)", "AdamWConfig has no argument 'peek_lr'; did you mean 'peak_lr'?"),
        ("gpt2(1, heds=2)", "gpt2 has no argument 'heds'; did you mean 'heads'?"),
        ("AdamWConfig()", "TypeError: AdamWConfig missing 1 required keyword-only argument: 'peak_lr'"),
        ("AdamWConfg(peak_lr=1)", "name 'AdamWConfg' is not defined; did you mean 'AdamWConfig'?"),
        ("llm_jax.optim.AdamWConfg", "has no attribute 'AdamWConfg'; did you mean 'AdamWConfig'?"),
        ("AdamWConfig(peak_lr=1).peek_lr", "has no attribute 'peek_lr'; did you mean 'peak_lr'?"),
        ("AdamWConfig(peak_lr=-1.0)", "peak_lr is -1.0: it must be greater than 0"),
        ("AdamWConfig(peak_lr='1')", "AdamWConfig.peak_lr is '1': it must be a finite float; write 1.0"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("__import__('llm_jax.optmi')", "No module named 'llm_jax.optmi'; did you mean 'optim'?"),
        ("open('absent')", "No such file or directory: 'absent'"),
    ],
)
def test_a_mistake_is_shown_with_its_line_and_what_was_probably_meant(tmp_path, line, message):
    file = tmp_path / "lab.py"
    file.write_text(f"{IMPORTS}\ndef experiment():\n    return {line}\n")
    with pytest.raises(ValueError) as error:
        run(file)
    text = str(error.value)
    assert text.startswith(f"{file}:6: ") and message in text, text
    assert text.count("\n") <= 2 and f"return {line}" in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from llm_jax.optim import AdamWConfg", "cannot import name 'AdamWConfg' from 'llm_jax.optim'"),
        ("from llm_jax.optim import AdamWConfg", "did you mean 'AdamWConfig'?"),
        ("import shard", "No module named 'shard'; did you mean 'shared'?"),
        ("from . import shared", "write `import module` for a file in the same folder"),
        ("from shared import nothing_of_that_name", "cannot import name 'nothing_of_that_name' from 'shared'"),
        ("x = = 1", "invalid syntax"),
    ],
)
def test_a_mistake_at_the_top_of_the_file_is_shown_too(tmp_path, line, message):
    (tmp_path / "shared.py").write_text("SIZE = 1\n")
    file = tmp_path / "lab.py"
    file.write_text(f"\n{line}\n")
    with pytest.raises(ValueError) as error:
        run(file)
    assert str(error.value).startswith(f"{file}:2: ") and message in str(error.value)


def test_a_mistake_in_a_module_beside_the_file_is_shown_there(tmp_path):
    for source, line in (("def size():\n    return nothing\n", 2), ("def size(:\n", 1)):
        (tmp_path / "beside.py").write_text(source)
        (tmp_path / "lab.py").write_text("import beside\n\ndef experiment():\n    return beside.size()\n")
        with pytest.raises(ValueError) as error:
            run(tmp_path / "lab.py")
        assert str(error.value).startswith(f"{tmp_path / 'beside.py'}:{line}: ")


@pytest.mark.parametrize("content", [b"x = '\xff'\n", b"x = 1\x00\n"])
def test_a_file_that_is_no_text_is_named(tmp_path, content):
    (tmp_path / "lab.py").write_bytes(content)
    with pytest.raises(ValueError, match="lab.py"):
        run(tmp_path / "lab.py")


def test_modules_beside_the_file_are_its_own_and_leave_no_trace(tmp_path):
    before = list(sys.path)
    for name in ("one", "two", "one"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "beside_it.py").write_text(f"class Part:\n    name = {name!r}\n")
        (folder / "lab.py").write_text("import beside_it\ndef experiment():\n    return beside_it.Part()\n")
        part = run(folder / "lab.py")
        assert part.name == name and sys.path == before
        assert type(pickle.loads(pickle.dumps(part))) is type(part), "an instance of its class cannot be pickled"


def test_a_file_that_changed_within_a_second_is_read_again(tmp_path):
    file = tmp_path / "lab.py"
    for number in range(3):
        file.write_text(f"def experiment():\n    return {number}\n")
        assert run(file) == number
    assert [path.name for path in tmp_path.iterdir()] == ["lab.py"]


def test_the_command_shows_no_traceback(tmp_path):
    file = tmp_path / "lab.py"
    file.write_text(f"{IMPORTS}\ndef experiment():\n    return AdamWConfig(peek_lr=1)\n")
    code = f"from llm_jax.cli import main; main(['show', {str(file)!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"llm-jax show: {file}:6: AdamWConfig has no argument")
    assert "Traceback" not in done.stderr
