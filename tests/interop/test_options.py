"""Every option of a config.json that is read is checked for type and range, in every family, before it is used."""

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import llm_jax.interop
from llm_jax.interop import load_hf, read_config, save_hf
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.fields import Field, Nested, Nonlinearity, Only, Rope, Table
from llm_jax.interop.options import KINDS
from llm_jax.interop.settings import Settings
from llm_jax.models.build import build
from tests.helpers import tiny
from tests.helpers.published import EVERY, PUBLISHED
from tests.interop.test_families import EXPORTED

NAMED = {"given": None, "need": None, "activation": None, "nested": None, "stated": 1, "only": 1}
"""Methods of Settings, and how many of their first arguments are names of options; None: all."""
WRONG = ["12", "", [], {}, True, -1, 0, 1, 1.5, -0.5, 1e300, 1e-300, 10**400, math.nan, math.inf, [None], {"a": 1}]


def _listed(fields: Table) -> Iterator[str]:
    """Names of the options of a table that are read by entries which say their names."""
    for entry in fields:
        if isinstance(entry, Nested):
            yield from _listed(entry.fields)
        if isinstance(entry, Nested | Field | Nonlinearity | Only):
            yield entry.option
        if isinstance(entry, Field):
            yield from entry.older
        if isinstance(entry, Rope):
            yield entry.length


def test_every_option_that_is_read_has_a_kind():
    names = {
        word.value
        for path in Path(llm_jax.interop.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in NAMED
        for word in node.args[: NAMED[node.func.attr]]
        if isinstance(word, ast.Constant)
    }
    listed = {name for family in FAMILIES.values() for name in _listed(family.fields)}
    assert len(listed) > 100 and len(names) > 50
    assert names | listed <= set(KINDS)


def test_no_table_reads_an_option_or_gives_an_argument_twice():
    for kind, family in FAMILIES.items():
        names = [name for entry in family.fields if not isinstance(entry, Nested) for name in _listed((entry,))]
        assert len(names) == len(set(names)), kind
        arguments = [entry.argument for entry in family.fields if isinstance(entry, Field)]
        assert len(arguments) == len(set(arguments)), kind


@pytest.mark.parametrize("kind", FAMILIES)
def test_wrong_values_are_refused_or_read_and_nothing_else(kind: str):
    family = FAMILIES[kind]
    config = next(one for one in EXPORTED.values() if family.expresses(one))
    options = family.write(config) | {"rope_scaling": None, "rope_parameters": None}
    for name in set(options) | ({"rope_scaling"} & set(options)):
        for value in WRONG:
            # ValueError alone; anything else fails the test.
            try:
                family.read(Settings(options | {name: value}))
            except ValueError as error:
                assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_position_embeddings": 1.5}, "max_position_embeddings = 1.5: it must be a whole number from 1 to 2147"),
        ({"hidden_size": "16"}, "hidden_size = '16': it must be a whole number"),
        ({"hidden_size": True}, "hidden_size = True: it must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: it must be a whole number from 1 to 1024"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0: it must be a whole number from 1"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps = -1e-06: it must be a number greater than 0"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps = nan: it must be a number greater than 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no': it must be true or false"),
        ({"rope_scaling": [2.0]}, r"rope_scaling = \[2.0\]: it must be an object of options"),
        ({"rope_scaling": {"type": 3}}, "rope_scaling.type = 3: it must be a string"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor = '2': it must be a number greater"),
        ({"rope_theta": 10**400}, r"rope_theta = 1000*\.\.\.: it must be a number greater than 0"),
        ({"model_type": ["llama"]}, r"model_type = \['llama'\]: it must be a string"),
        (
            {"vocab_size": 10**9},
            r"has shape \[32, 16\] and config.json requires \[1000000000, 16\] in a model of 32B parameters",
        ),
        ({"num_hidden_layers": 1000}, "lacks model.layers.2.input_layernorm.weight.* in a model of .*M parameters"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_field(tmp_path: Path, options: dict, message: str):
    model = build(PUBLISHED["llama"])
    save_hf(model, tiny.parameters(model), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    with pytest.raises(ValueError, match=f"{tmp_path}.*{message}"):
        load_hf(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "3", "[" * 100_000, '{"model_type": "llama"', "\udc80", "1" * 5000])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config.json (is not JSON|holds .*: it must be a JSON object)"):
        read_config(tmp_path)


def test_experts_beyond_memory_are_refused_before_they_are_listed(tmp_path: Path):
    model = build(PUBLISHED["mixtral"])
    save_hf(model, tiny.parameters(model), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_local_experts": 2**31 - 1}))
    with pytest.raises(ValueError, match=r"has shape \[3, 16\] and config.json requires \[2147483647, 16\]"):
        load_hf(tmp_path)


@pytest.mark.parametrize(
    ("stored", "dtype", "value"),
    [(np.float64, "float32", 1e39), (np.float64, "bfloat16", 1e39), (np.float32, "bfloat16", 3.4e38)],
)
def test_values_beyond_the_type_are_refused(tmp_path: Path, stored: type, dtype: str, value: float):
    model = build(EVERY["llama"])
    save_hf(model, tiny.parameters(model), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name: array.astype(stored) for name, array in load_file(file).items()}
    save_file(tensors, file)
    load_hf(tmp_path, dtype=dtype)
    tensors["model.norm.weight"][3] = value
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"model.norm.weight has {np.dtype(stored)} values too large for {dtype}"):
        load_hf(tmp_path, dtype=dtype)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "longrope", "llama3"])
def test_wrong_values_of_scaled_rotations_are_refused_or_read_and_nothing_else(kind: str):
    options = FAMILIES["llama"].write(PUBLISHED["llama"])
    scaling = {"type": kind, "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 1.0}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0}
    scaling |= {"short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0], "attention_factor": 1.0, "rope_theta": 1e4}
    for name in scaling:
        for value in WRONG:
            try:
                config = FAMILIES["llama"].read(Settings(options | {"rope_scaling": scaling | {name: value}}))
            except ValueError as error:
                assert len(str(error)) < 1000
            else:
                assert 0 < config.max_length < 2**31
                rope = config.segments[0].blocks[0].mixer.position
                frequencies, magnitude = rope.scaling.frequencies(rope.base, 4, np.arange(8)[None])
                assert np.isfinite(frequencies).all() and np.isfinite(magnitude)
