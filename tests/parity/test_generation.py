"""Greedy targets and beam search are those of transformers' `generate`, on small random models."""

import dataclasses
import functools
import importlib.util
from typing import Any

import numpy as np
import pytest

from llm_jax.inference.beam import BeamSearch
from llm_jax.inference.beam_config import BeamConfig
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.interop import load_hf
from tests.parity.torch_models import CASES

for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

STARTS = {"mt5": 0, "bart": 2}


@pytest.mark.parametrize("name", STARTS)
def test_targets_are_those_of_transformers(name, tmp_path):
    import torch

    case = CASES[name]
    theirs = case.torch_model()
    theirs.save_pretrained(tmp_path)
    source, mask = case.inputs["input_ids"], case.inputs["attention_mask"]
    options = {"decoder_start_token_id": STARTS[name], "forced_eos_token_id": None, "pad_token_id": 1}
    found = theirs.generate(
        torch.from_numpy(source),
        attention_mask=torch.from_numpy(mask),
        do_sample=False,
        num_beams=1,
        use_cache=False,  # it has as many layers as the encoder, and the decoder has more
        max_new_tokens=12,
        eos_token_id=96,
        **options,
    )
    expected = [_ended(row[1:], 96) for row in found.tolist()]
    model, params = load_hf(tmp_path)
    generator = Generator(model, SamplingConfig(temperature=0.0), eos_id=96, pad_id=1, start=(STARTS[name],))
    sources = [row[real == 1].tolist() for row, real in zip(source, mask, strict=True)]
    assert generator.generate(params, sources, 12) == expected
    assert len({tuple(row) for row in expected}) > 1


def _ended(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row


THEIRS = {
    "llama, biases": ({"num_hidden_layers": 1}, None),
    "mt5": ({"num_layers": 1, "num_decoder_layers": 1}, 0),
}
"""{case: (options that make it smaller, the decoder's start)}. T5's cache of transformers needs as many layers in the
decoder as in the encoder."""
SETTINGS = [
    BeamConfig(3, n_best=3),
    BeamConfig(4, n_best=2, early_stopping=True, length_penalty=-0.3),
    BeamConfig(5, n_best=5, early_stopping="never", length_penalty=2.0),
]


@pytest.mark.parametrize("name", THEIRS)
def test_hypotheses_are_those_of_transformers(name, tmp_path):
    import torch

    smaller, start = THEIRS[name]
    case = dataclasses.replace(CASES[name], options=CASES[name].options | smaller, gain=1.5)
    theirs = case.torch_model()
    theirs.save_pretrained(tmp_path)
    model, params = load_hf(tmp_path)
    ids, new, early = case.inputs["input_ids"][:, 5:15], 9, 0
    before = ids.shape[1] if start is None else 1
    generate = functools.partial(_theirs, theirs, torch.from_numpy(ids), new, decoder_start_token_id=start)
    for number, config in enumerate(SETTINGS):
        # A token that hypotheses have somewhere, so that some end early.
        end = generate(config, eos_token_id=1).sequences[number, before + 2].item()
        found = generate(config, eos_token_id=end)
        search = BeamSearch(model, config, end, 1, start=() if start is None else (start,))
        ours = [one for prompt in search.search(params, ids.tolist(), new) for one in prompt]
        assert [one.tokens for one in ours] == [_ended(row[before:], end) for row in found.sequences.tolist()]
        np.testing.assert_allclose([one.score for one in ours], found.sequences_scores, rtol=1e-4)
        early += sum(len(one.tokens) < new for one in ours)
    assert early > 3


def _theirs(model: Any, ids: Any, new_tokens: int, config: BeamConfig, **options: Any) -> Any:
    return model.generate(
        ids,
        attention_mask=ids * 0 + 1,
        do_sample=False,
        num_beams=config.beams,
        num_return_sequences=config.n_best,
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
        max_new_tokens=new_tokens,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
