"""Every family's logits are those that transformers once gave, without torch."""

import json

import numpy as np
import pytest

from llm_jax.interop import forward, load_hf
from llm_jax.interop.catalogue import PROOFS
from llm_jax.interop.families import FAMILIES
from tests.parity import torch_models
from tests.parity.inputs import GOLDEN, TOKENS, difference

FIXTURES = sorted(path.parent for path in GOLDEN.glob("*/config.json"))
MASKS = {torch_models.folder(name): case.mask for name, case in torch_models.CASES.items()}


@pytest.mark.parametrize("folder", FIXTURES, ids=[path.name for path in FIXTURES])
def test_logits_of_the_fixture(folder):
    model, params = load_hf(folder)
    expected, mask = np.load(folder / "logits.npz")["logits"], MASKS[folder.name]
    assert difference(forward(model, params, input_ids=TOKENS, attention_mask=mask), expected, mask) <= 1e-4


def test_every_model_type_has_a_fixture_and_a_record():
    kinds = {json.loads((folder / "config.json").read_text())["model_type"] for folder in FIXTURES}
    assert kinds == set(FAMILIES)
    proofs = json.loads(PROOFS.read_text())["models"]
    assert {proof["model_type"] for proof in proofs} == kinds and len(proofs) == len(FIXTURES)
    assert all(proof["difference"] <= 1e-4 for proof in proofs)


def test_fixtures_are_small():
    for folder in FIXTURES:
        assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000, folder
