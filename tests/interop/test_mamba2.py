"""Options of a Mamba-2's config.json: what is read, and what is refused by name."""

import dataclasses
import math

import pytest

from llm_jax.interop.families import FAMILIES
from llm_jax.interop.settings import Settings
from llm_jax.layers.recurrent.matrix_recurrence import RecurrentForm
from llm_jax.models.families import SIZES

FAMILY = FAMILIES["mamba2"]
WRITTEN = FAMILY.write(SIZES["mamba2-130m"]())


def _mixer(**options):
    return FAMILY.read(Settings(WRITTEN | options)).segments[0].blocks[0].mixer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu': only 'silu' is supported"),
        ({"expand": 3}, "expand 3, hidden_size 768, num_heads 24 and head_dim 64"),
        ({"n_groups": 5}, "groups is 5 and heads is 24: groups must divide heads"),
        ({"hidden_size": None}, "has no hidden_size"),
    ],
)
def test_configs_that_are_not_supported_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        _mixer(**options)


def test_a_limit_may_be_infinite_in_the_words_of_every_version():
    for word in (math.inf, {"__float__": "Infinity"}):
        assert _mixer(time_step_limit=[0.5, word]).step_limit == (0.5, math.inf)
    assert WRITTEN["time_step_limit"] == [0.0, {"__float__": "Infinity"}]


def test_a_file_that_names_no_longest_row_sets_none():
    options = {name: value for name, value in WRITTEN.items() if name != "max_position_embeddings"}
    assert FAMILY.read(Settings(options)).max_length >= 10**6


def test_how_a_model_is_computed_is_no_part_of_what_it_is():
    config = SIZES["mamba2-130m"]()
    (segment,) = config.segments
    (block,) = segment.blocks
    other = dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, form=RecurrentForm()))
    config = dataclasses.replace(config, segments=(dataclasses.replace(segment, blocks=(other,)),))
    assert FAMILY.expresses(config)


def test_features_that_are_no_multiple_of_the_width_cannot_be_said():
    config = dataclasses.replace(SIZES["mamba2-130m"](), width=700)
    with pytest.raises(
        ValueError, match="the mixer has 1536 features: config.json can only express multiples of the width 700"
    ):
        FAMILY.write(config)
