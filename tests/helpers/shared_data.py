"""Real data sets beside a checkout. They are not in the repository."""

import os
from pathlib import Path

import pytest

from tests.helpers.command_line import ROOT


def folder(name: str) -> Path:
    """Folder of a data set, below shared/data of the checkout or of the folder around it, or below data of the folder
    that LLM_JAX_SHARED names. Skips the test if there is none."""
    places = [ROOT / "shared", ROOT.parent / "shared"]
    if "LLM_JAX_SHARED" in os.environ:
        places.insert(0, Path(os.environ["LLM_JAX_SHARED"]))
    for place in places:
        if (place / "data" / name).is_dir():
            return place / "data" / name
    pytest.skip(f"no data/{name} in {', '.join(map(str, places))}: set LLM_JAX_SHARED")
