"""Inputs with padding on which transformers' results depend are refused; elsewhere padding is counted as there."""

import numpy as np
import pytest

from llm_jax.interop.model_inputs import model_inputs
from llm_jax.interop.padding import counts_tokens
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.models.build import build
from llm_jax.models.families.bert import bert
from llm_jax.models.families.encoder import sequence_head
from llm_jax.models.families.switch import switch
from tests.helpers.published import EVERY
from tests.helpers.tiny import tokens

BEFORE = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
AFTER = BEFORE[:, ::-1]


@pytest.mark.parametrize("name", ["bert, rows", "albert, rows", "electra, rows"])
def test_a_row_that_is_read_from_padding_is_refused(name: str):
    config = (
        bert(1, 2, 8, vocab_size=32, max_length=16, narrow=4, head=sequence_head(3, "gelu"))
        if name == "electra, rows"
        else EVERY[name]
    )
    inputs = {"input_ids": tokens(2, 6)}
    with pytest.raises(
        ValueError, match=r"attention_mask is 0 at the first token of sequences \[1\]: .*; pad at the end"
    ):
        model_inputs(build(config), **inputs, attention_mask=BEFORE)
    model_inputs(build(config), **inputs, attention_mask=AFTER)


def test_scores_of_tokens_take_padding_on_either_side():
    for mask in (BEFORE, AFTER):
        model_inputs(build(EVERY["bert"]), input_ids=tokens(2, 6), attention_mask=mask)


def test_padding_that_would_take_places_of_full_experts_is_refused():
    inputs = {"input_ids": tokens(2, 6), "decoder_input_ids": tokens(2, 3)}
    shape = {"vocab_size": 32, "max_length": 16, "head_dim": 4, "experts": 4}
    narrow = build(switch(2, 2, 8, hidden=16, **shape, dispatch=Capacity(2 * 4 / 16, group=16)))
    ample = build(switch(2, 2, 8, hidden=16, **shape, dispatch=Capacity(6 * 4 / 16, group=16)))
    with pytest.raises(
        ValueError, match=r"padding before real tokens in sequences \[1\], .* capacity for 2 of 6 tokens"
    ):
        model_inputs(narrow, **inputs, attention_mask=BEFORE)
    model_inputs(narrow, **inputs, attention_mask=AFTER)
    model_inputs(ample, **inputs, attention_mask=BEFORE)


@pytest.mark.parametrize("name", ["bloom", "falcon, alibi"])
def test_holes_between_which_distances_differ_are_refused(name: str):
    model, inputs = build(EVERY[name]), {"input_ids": tokens(2, 6)}
    holes = np.array([[0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"attention_mask has padding between real tokens in sequences \[1\]"):
        model_inputs(model, **inputs, attention_mask=holes)
    model_inputs(model, **inputs, attention_mask=holes[:1].repeat(2, axis=0))
    model_inputs(build(EVERY["mpt"]), **inputs, attention_mask=holes)


COUNTING = {"opt", "opt, 350m", "roberta", "mpnet", "mpnet, rows", "bloom", "falcon, alibi"}


def test_positions_count_real_tokens_in_the_families_where_transformers_counts_them():
    models = [name for name, config in EVERY.items() if len(config.stacks) == 1]
    assert {name for name in models if counts_tokens(EVERY[name])} == COUNTING
