"""The user's own files: found, kept, compared, and imported again from their copies."""

import sys

import pytest

from llm_jax.core import config_text, source, user_file
from llm_jax.core.source import SourceCode, own_types
from llm_jax.optim import AdamWConfig

BASE = """
import math
from llm_jax.core.configclass import configclass
from llm_jax.optim.schedules import Schedule, _warmed

@configclass
class Halved(Schedule):
    half: float = 0.5

    def build(self, peak, steps):
        return _warmed(self.half * peak, 0, lambda step: 0 * step + 1)
"""


@pytest.fixture
def folder(tmp_path):
    """An experiment file that imports a package and a sibling, one of which imports the other."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from package.deep import Halved\n")
    (tmp_path / "package" / "deep.py").write_text(BASE)
    (tmp_path / "sibling.py").write_text("import package\nVALUE = 3\n")
    (tmp_path / "other.py").write_text("raise ValueError('nobody imports this')")
    (tmp_path / "mine.py").write_text("import sibling\n\ndef experiment():\n    return sibling.package.Halved()\n")
    return tmp_path


def run(folder):
    with user_file.user_code(folder):
        module = user_file.run_file(folder / "mine.py")
        return module.experiment()


def test_the_file_and_all_local_modules_that_it_imports_are_found(folder):
    run(folder)
    found = SourceCode.of_file(folder / "mine.py")
    assert set(found.modules) == {"experiment_mine", "sibling", "package", "package.deep"}
    assert found.modules["package.deep"] == BASE


def test_of_an_experiment_object_the_files_of_its_types_are_found(folder):
    made = AdamWConfig(peak_lr=1.0, schedule=run(folder))
    assert set(SourceCode.of(made).modules) == {"package.deep"}
    assert own_types(made) == [type(made.schedule)]
    assert not SourceCode.of(AdamWConfig(peak_lr=1.0)).modules


def test_a_config_is_read_back_from_the_copy_after_the_files_have_changed(folder, tmp_path):
    made = AdamWConfig(peak_lr=1.0, schedule=run(folder))
    text, kept = config_text.to_text(made), tmp_path / "run" / "source"
    SourceCode.of_file(folder / "mine.py").write(kept)
    (folder / "package" / "deep.py").write_text(BASE.replace("half: float", "halb: float"))
    before = dict(sys.modules)
    with source.loaded(kept):
        found = config_text.parse(text)
    assert config_text.to_text(found) == text and found.schedule.half == 0.5
    assert {name: module for name, module in sys.modules.items() if name in before} == before
    assert type(found.schedule).__module__ == "package.deep" and type(found.schedule) is not type(made.schedule)
    sys.modules.pop("package.deep", None), sys.modules.pop("package", None)
    with pytest.raises(ValueError, match="is a package.deep.Halved, which cannot be imported"):
        config_text.parse(text)


def test_a_difference_names_file_and_line(folder):
    run(folder)
    before = SourceCode.of_file(folder / "mine.py")
    assert before.difference(before) == ""
    (folder / "sibling.py").write_text("import package\nVALUE = 4\n")
    run(folder)
    after = SourceCode.of_file(folder / "mine.py")
    shown = before.difference(after)
    assert "--- run/sibling.py" in shown and "-VALUE = 3" in shown and "+VALUE = 4" in shown and "deep" not in shown
    assert before.digest != after.digest


def test_a_copy_that_was_changed_is_refused(folder, tmp_path):
    run(folder)
    kept = tmp_path / "source"
    assert SourceCode.read(kept) is None
    made = SourceCode.of_file(folder / "mine.py")
    made.write(kept)
    assert SourceCode.read(kept) == made
    (kept / "sibling.py").write_text("import package\n")
    with pytest.raises(ValueError, match=r"sibling.py was changed since the run wrote it"):
        SourceCode.read(kept)
    (kept / "sibling.py").unlink()
    with pytest.raises(ValueError, match=r"sibling.py cannot be read"):
        SourceCode.read(kept)
    for text in ("[]", '{"modules": 3}', '{"modules": {"../x": {}}}', '{"modules": {"mine": 1}}'):
        (kept / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="restore it"):
            SourceCode.read(kept)


def test_what_is_written_replaces_what_is_there(folder, tmp_path):
    run(folder)
    kept = tmp_path / "source"
    SourceCode({"gone": "x = 1\n", "package.gone": "y = 2\n"}).write(kept)
    made = SourceCode.of_file(folder / "mine.py")
    made.write(kept)
    assert (
        SourceCode.read(kept) == made
        and not (kept / "gone.py").exists()
        and not (kept / "package" / "gone.py").exists()
    )


def test_a_type_inside_a_function_is_refused(folder):
    (folder / "mine.py").write_text(
        f"def experiment():\n{BASE.replace(chr(10), chr(10) + '    ')}\n    return Halved()\n"
    )
    made = run(folder)
    with pytest.raises(ValueError, match="Halved is defined inside a function"):
        SourceCode.of_file(folder / "mine.py").check(made)
