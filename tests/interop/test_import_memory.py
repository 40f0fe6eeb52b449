"""An import needs little memory beside the parameters."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from llm_jax.interop import save_hf
from llm_jax.models.build import abstract_parameters, build
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.llama import llama

MODELS = {
    "gpt2": gpt2(4, heads=8, width=1024, vocab_size=20_000),
    "llama": llama(6, heads=8, width=768, hidden=2048, vocab_size=20_000),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what memory is in use")
@pytest.mark.parametrize("name", MODELS)
def test_the_peak_is_at_most_1_3_of_the_parameters(name: str, tmp_path: Path):
    model = build(MODELS[name])
    shapes, _ = abstract_parameters(model)
    save_hf(model, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes), tmp_path, dtype="float32")
    script = Path(__file__).with_name("import_memory.py")
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr
    ratio = float(done.stdout)
    assert 0.95 < ratio <= 1.3, f"the import took {ratio:.2f} times the parameters"
