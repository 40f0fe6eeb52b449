"""What `pip install` gives outside of the clone."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llm_jax"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the package, built from a copy so that the clone stays as it is, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, folder / "clone" / "llm_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "clone")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    result = subprocess.run(
        [*command, "--wheel-dir", folder, folder / "clone"], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder of unpacked packages, as pip makes it."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_it_has_every_module_and_every_file_that_modules_read(wheel):
    needed = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    needed = {name for name in needed if "__pycache__" not in name and not name.endswith(".md")}
    assert any(name.endswith(".json") for name in needed)
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("llm_jax/")} == needed


def test_it_has_its_license_and_its_description(wheel):
    with zipfile.ZipFile(wheel) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    (license_text,) = (text for name, text in texts.items() if name.endswith("/LICENSE"))
    (metadata,) = (text for name, text in texts.items() if name.endswith("/METADATA"))
    assert license_text == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (ROOT / "README.md").read_text(encoding="utf-8") in metadata


def test_it_works_outside_of_the_clone(installed):
    # The catalogue reads the list of proofs, which is no module.
    program = (
        "import llm_jax; from llm_jax.interop.catalogue import PROOFS; "
        "print(llm_jax.__file__); print(PROOFS.read_text(encoding='utf-8'))"
    )
    environment = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=installed, env=environment)
    assert result.returncode == 0, result.stderr
    place, _, proofs = result.stdout.partition("\n")
    assert Path(place).is_relative_to(installed)
    assert "llama" in {proof["model_type"] for proof in json.loads(proofs)["models"]}
