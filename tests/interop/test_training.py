"""Rates of dropout and scales of initial values of a config.json are kept, and written again."""

import dataclasses
import re

import pytest

from llm_jax.interop import training
from llm_jax.interop.families import FAMILIES
from llm_jax.layers.initialisers import FanIn, Normal
from llm_jax.models.dropout import Rates, rates_of
from llm_jax.models.families.bert import bert
from llm_jax.models.families.encoder import sequence_head
from llm_jax.models.families.xlnet import last_head, xlnet
from tests.helpers.published import EVERY

KINDS = {kind: next(one for one in EVERY.values() if family.expresses(one)) for kind, family in FAMILIES.items()}

NAMES = r"^(?!.*(eps|path)).*(drop|pdrop)"
OLD = {"resid_pdrop": "residual", "embd_pdrop": "embed", "attn_pdrop": "attention"}
TABLE = {
    "gpt2": OLD,
    "gptj": OLD,
    "gpt_bigcode": OLD,
    "llama": {"attention_dropout": "attention"},
    "gpt_neox": {"attention_dropout": "attention", "hidden_dropout": "residual"},
    "opt": {"dropout": "residual", "attention_dropout": "attention", "layerdrop": "layers"},
    "bert": {"hidden_dropout_prob": "residual", "attention_probs_dropout_prob": "attention"},
    "mpnet": {"hidden_dropout_prob": "residual", "attention_probs_dropout_prob": "attention"},
    "bart": {"dropout": "embed", "attention_dropout": "attention", "activation_dropout": "ffn"},
    "t5": {"dropout_rate": "final"},
    "umt5": {"dropout_rate": "final"},
    "switch_transformers": {"dropout_rate": "experts"},
    "xlnet": {"dropout": "ffn"},
    "starcoder2": {"residual_dropout": "residual", "embedding_dropout": "embed", "attention_dropout": "attention"},
    "modernbert": {"attention_dropout": "attention", "embedding_dropout": "embed", "mlp_dropout": "ffn"},
    "deepseek_v3": {"attention_dropout": "attention"},
}


@pytest.mark.parametrize("kind", TABLE)
def test_rates_of_a_file_are_kept_and_written(kind):
    """Each option with a rate of its own, where transformers' classes have the option."""
    family, config = FAMILIES[kind], KINDS[kind]
    stated = {name: round(0.11 + 0.1 * number, 2) for number, name in enumerate(TABLE[kind])}
    model = training.read(family, family.write(config) | stated)
    assert {name: getattr(rates_of(model), place) for name, place in TABLE[kind].items()} == stated
    assert training.write(family, model).items() >= stated.items()
    assert rates_of(training.read(family, training.write(family, model))) == rates_of(model)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_written_is_read_again_with_the_same_rates_and_initial_values(kind):
    """And what transformers takes where a file says nothing is what is read of such a file."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: its defaults are unknown")
    family, config = FAMILIES[kind], KINDS[kind]
    model = training.read(family, family.write(config))
    written = training.write(family, model)
    assert training.read(family, written) == model
    theirs = transformers.AutoConfig.for_model(kind).to_dict()
    for name, value in written.items():
        if re.search(NAMES, name) and theirs.get(name) is not None:
            assert value == pytest.approx(theirs[name]), name


def test_nested_options_and_layer_drop_of_each_side_are_kept():
    mpt = FAMILIES["mpt"]
    options = mpt.write(KINDS["mpt"])
    nested = options | {"attn_config": options.get("attn_config", {}) | {"attn_pdrop": 0.3}}
    written = training.write(mpt, training.read(mpt, nested))
    assert written["attn_config"] == nested["attn_config"]
    bart = FAMILIES["bart"]
    model = training.read(bart, bart.write(KINDS["bart"]) | {"encoder_layerdrop": 0.2, "decoder_layerdrop": 0.1})
    assert [rates_of(stack).layers for stack in model.stacks] == [0.2, 0.1]
    assert training.write(bart, model).items() >= {"encoder_layerdrop": 0.2, "decoder_layerdrop": 0.1}.items()


def test_a_classifier_drops_as_hidden_states_where_the_file_says_nothing_of_it():
    family, config = FAMILIES["bert"], bert(2, 4, 16, vocab_size=32, max_length=16, head=sequence_head(3))
    options = family.write(config) | {"hidden_dropout_prob": 0.2, "classifier_dropout": None}
    assert rates_of(training.read(family, options)).head == 0.2
    assert rates_of(training.read(family, options | {"classifier_dropout": 0.3})).head == 0.3
    family, config = FAMILIES["xlnet"], xlnet(2, 4, 16, vocab_size=32, head=last_head(3))
    assert rates_of(training.read(family, family.write(config) | {"summary_last_dropout": 0.4})).head == 0.4


@pytest.mark.parametrize("value", [1.0, -0.1, "0.1", True])
def test_what_is_no_rate_is_refused_by_the_name_of_its_option(value):
    family = FAMILIES["gpt2"]
    with pytest.raises(ValueError, match=f"config.json has attn_pdrop = {re.escape(repr(value))}"):
        training.read(family, family.write(KINDS["gpt2"]) | {"attn_pdrop": value})


def test_the_scale_of_initial_values_is_kept_with_the_familys_proportions():
    family, config = FAMILIES["gpt2"], KINDS["gpt2"]
    model = training.read(family, family.write(config) | {"initializer_range": 0.01})
    block, plain = model.segments[0].blocks[0], config.segments[0].blocks[0]
    assert model.embed.init == block.mixer.init == Normal(0.01)
    assert block.ffn.out_init.stddev == pytest.approx(plain.ffn.out_init.stddev / 2)
    assert training.write(family, model)["initializer_range"] == 0.01
    assert training.read(family, training.write(family, config)).embed.init == config.embed.init


def test_options_of_other_names_and_factors_are_kept():
    opt, t5 = FAMILIES["opt"], FAMILIES["t5"]
    model = training.read(opt, opt.write(KINDS["opt"]) | {"init_std": 0.02})
    assert (
        model.embed.init.stddev == pytest.approx(0.02)
        and training.write(opt, model)["init_std"] == model.embed.init.stddev
    )
    model = training.read(t5, t5.write(KINDS["t5"]) | {"initializer_factor": 0.5})
    assert model.decoder.embed.init == Normal(0.5) and model.decoder.segments[0].blocks[0].mixer.init == FanIn(0.5)
    assert training.write(t5, model)["initializer_factor"] == 0.5
    with pytest.raises(ValueError, match="config.json has initializer_factor = 0"):
        training.read(t5, t5.write(KINDS["t5"]) | {"initializer_factor": 0})


def test_initial_values_that_follow_from_sizes_stay():
    neox = FAMILIES["gpt_neox"]
    model = training.read(neox, neox.write(KINDS["gpt_neox"]) | {"initializer_range": 0.02})
    assert model.embed.init == KINDS["gpt_neox"].embed.init and "initializer_range" not in training.write(neox, model)


def test_all_rates_have_a_place():
    assert {field.name for field in dataclasses.fields(Rates)} >= {
        place for rates in training._RATES.values() for place in rates
    }
