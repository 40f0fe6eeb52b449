"""What a full expert of a Switch Transformer drops is what transformers drops; padding is another matter."""

import importlib.util

import numpy as np
import pytest

from llm_jax.interop import forward, load_hf
from tests.parity.inputs import difference, torch_logits
from tests.parity.torch_models import CASES, Case

for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

NARROW = Case(**(vars(CASES["switch"]) | {"options": CASES["switch"].options | {"expert_capacity": 3}}))
GENERATOR = np.random.default_rng(0)
FULL = {
    "input_ids": GENERATOR.integers(0, 97, (3, 24)),
    "attention_mask": np.ones((3, 24), int),
    "decoder_input_ids": GENERATOR.integers(0, 97, (3, 11)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("switch")
    theirs = NARROW.torch_model()
    theirs.save_pretrained(folder)
    return theirs, folder


def test_the_same_tokens_are_dropped(saved):
    theirs, folder = saved
    model, params = load_hf(folder)
    expected = torch_logits(theirs, **FULL)
    assert difference(forward(model, params, **FULL), expected, FULL) <= 1e-4
    theirs.config.expert_capacity = 64
    ample = CASES["switch"].torch_model()
    assert difference(torch_logits(ample, **FULL), expected, FULL) > 1e-2


def test_padding_before_a_token_takes_its_place_there_and_is_refused_here(saved):
    theirs, folder = saved
    model, params = load_hf(folder)
    padded = FULL | {"attention_mask": np.where(np.arange(24) < 12, 0, FULL["attention_mask"])}
    with pytest.raises(
        ValueError, match="an expert has capacity for 3 of 24 tokens: in transformers padding uses capacity"
    ):
        forward(model, params, **padded)
    after = FULL | {"attention_mask": np.where(np.arange(24) < 12, FULL["attention_mask"], 0)}
    assert difference(forward(model, params, **after), torch_logits(theirs, **after), after) <= 1e-4
