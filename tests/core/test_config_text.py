"""A config and its flat text say the same thing, and nothing that differs looks alike."""

import dataclasses
import math
import sys
import types
from typing import Any

import numpy as np
import pytest

from llm_jax.core import config_text
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.llama import llama


@dataclasses.dataclass(frozen=True)
class Inner:
    number: Any = 1


@dataclasses.dataclass(frozen=True)
class Twin:
    """The fields of Inner under another type."""

    number: Any = 1


@dataclasses.dataclass(frozen=True)
class Outer:
    name: Any
    inner: Any = Inner()
    rest: Any = ()


@pytest.fixture(autouse=True)
def _types_of_the_package(monkeypatch):
    """Makes the classes above importable from inside the package, where alone configs may be read back from."""
    module = types.ModuleType("llm_jax.imagined")
    for kind in (Inner, Twin, Outer):
        monkeypatch.setattr(kind, "__module__", module.__name__)
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)


LEAVES = [
    None,
    True,
    False,
    0,
    -7,
    10**30,
    0.1,
    -0.0,
    1e-300,
    1.0,
    math.inf,
    -math.inf,
    "",
    " ",
    "two\nlines\r\n",
    "x = 3",
    "= llm_jax.imagined.Inner",
    "llm_jax.imagined.Inner",
    'quotes " and \\ and \t',
    "\u2028\u2029\x85\x0b\x0c\x1c\x00",
    "日本語 🙂 \udcff",
    (),
    (1,),
    (1, "a", None, 2.5, False),
    ((), (1, (2, ("deep",)))),
    ("",),
]


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: ascii(leaf)[:30])
def test_every_kind_of_leaf_survives_the_text(leaf):
    original = Outer("name", Inner(leaf), (leaf,))
    back = config_text.parse(config_text.to_text(original))
    assert back == original
    assert repr(back) == repr(original)  # == does not tell True from 1, nor -0.0 from 0.0


def test_text_has_one_ascii_line_per_leaf_and_type():
    text = config_text.to_text(Outer("a\u2028b\nc", Inner("é")))
    assert text.isascii() and text.endswith("\n")
    assert text.splitlines()[0] == "= llm_jax.imagined.Outer"
    assert text.splitlines() == text[:-1].split("\n")
    assert len(text.splitlines()) == len(config_text.flatten(Outer("a", Inner("é"))))


@pytest.mark.parametrize(
    "original",
    [
        Outer("", (Inner(1), Twin(2)), (Inner((Inner(3), 4, "x")), ((Twin(()),), 5))),
        Outer((Inner(), ()), None, ((), (Inner(),))),
        gpt2(2, 2, 8),
        llama(3, 4, 16, hidden=24, kv_heads=2),
    ],
    ids=["mixed tuples", "empty tuple beside a config", "gpt2", "llama"],
)
def test_nested_configs_survive_the_text(original):
    assert config_text.parse(config_text.to_text(original)) == original


def test_not_a_number_survives_and_equals_itself():
    original = Inner(math.nan)
    assert math.isnan(config_text.parse(config_text.to_text(original)).number)
    assert config_text.diff(original, Inner(math.nan)) == []


def test_twelve_elements_come_back_in_order():
    original = Outer("", tuple(Inner(n) for n in range(12)))
    assert config_text.parse(config_text.to_text(original)) == original


def _variants(value: Any):
    """`value` with one thing in it changed, for every thing in it."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            for other in _variants(getattr(value, field.name)):
                yield lambda field=field, other=other: dataclasses.replace(value, **{field.name: other()})
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            for other in _variants(item):
                yield lambda index=index, other=other: (*value[:index], other(), *value[index + 1 :])
        yield lambda: (*value, *value)
    elif isinstance(value, bool) or value is None:
        yield lambda: 0.5 if value is None else not value
    elif isinstance(value, (int, float)):
        yield lambda: value * 2 if value else value + 1
    else:
        yield lambda: value + "_other"


def test_digest_changes_with_every_single_field():
    original = llama(2, 4, 16, hidden=24, kv_heads=2)
    digests = {config_text.digest(original)}
    built = 0
    for build in _variants(original):
        try:
            variant = build()
        except (ValueError, TypeError, AttributeError):  # this one change alone breaks a rule of the config
            continue
        built += 1
        digests.add(config_text.digest(variant))
    assert built > 15
    assert len(digests) == built + 1


def test_digest_tells_types_of_equal_fields_and_equal_numbers_of_different_type_apart():
    assert Inner(1) == Inner(1.0) == Inner(True)
    configs = [Inner(1), Inner(1.0), Inner(True), Inner("1"), Inner((1,)), Inner(None), Twin(1), Inner(Inner(1))]
    assert len({config_text.digest(one) for one in configs}) == len(configs)


def test_digest_is_sixteen_hex_digits_fixed_for_all_time():
    # Tokenizer caches and checkpoints carry digests: a change here makes every old run foreign.
    assert config_text.digest(Outer("a", Inner(0.5), (1, None))) == "6600e6cfeffa42b1"


def test_diff_gives_one_line_per_changed_path_and_none_for_equals():
    old = Outer("a", Inner(1), (Inner(1), Inner(2)))
    new = Outer("b", Twin(1), (Inner(1),))
    assert config_text.diff(old, old) == []
    assert config_text.diff(old, new) == [
        'name: "a" -> "b"',
        "inner: llm_jax.imagined.Inner -> llm_jax.imagined.Twin",
        "rest.1: llm_jax.imagined.Inner -> (absent)",
        "rest.1.number: 2 -> (absent)",
    ]
    assert config_text.diff(new, old)[-1] == "rest.1.number: (absent) -> 2"


def test_diff_of_two_kinds_of_experiment_names_the_experiment():
    assert config_text.diff(Inner(1), Twin(1)) == ["experiment: llm_jax.imagined.Inner -> llm_jax.imagined.Twin"]


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, np.zeros(2), len, Inner, np.int64(3), 1j, b"x", (1, [2])])
def test_what_cannot_be_written_is_refused_with_its_path_and_type(value):
    kind = type(value[1] if isinstance(value, tuple) else value).__name__
    with pytest.raises(ValueError, match=rf"'inner\.number' holds a {kind}.*remove"):
        config_text.to_text(Outer("a", Inner(value)))


def test_a_config_may_not_hide_in_a_list():
    with pytest.raises(ValueError, match="'rest' holds a list"):
        config_text.to_text(Outer("a", rest=[Inner()]))


def test_unknown_field_is_refused_with_its_name():
    text = config_text.to_text(Outer("a")) + "inner.numbre = 3\n"
    with pytest.raises(ValueError, match=r"inner \(llm_jax.imagined.Inner\) has fields \['numbre'\].*card.json"):
        config_text.parse(text)


def test_missing_field_is_a_clear_error():
    text = "".join(line for line in config_text.to_text(Outer("a")).splitlines(True) if not line.startswith("name"))
    assert text != config_text.to_text(Outer("a"))
    with pytest.raises(ValueError, match="name"):
        config_text.parse(text)


def test_missing_tuple_element_is_a_clear_error():
    text = config_text.to_text(Outer("a", rest=(Inner(1), Inner(2))))
    cut = "".join(line for line in text.splitlines(True) if not line.startswith("rest.0"))
    assert cut != text
    with pytest.raises(ValueError, match="rest"):
        config_text.parse(cut)


@pytest.mark.parametrize("name", ["llm_jax.imagined.Gone", "llm_jax.gone.Outer"])
def test_a_type_that_no_longer_exists_is_a_clear_error(name):
    with pytest.raises(ValueError, match=rf"inner is a {name}.*version that wrote it"):
        config_text.parse(config_text.to_text(Outer("a")).replace("inner = llm_jax.imagined.Inner", f"inner = {name}"))


def test_a_name_that_is_no_config_type_is_a_clear_error():
    with pytest.raises(ValueError, match=r"llm_jax\.core\.config_text\.flatten"):
        config_text.parse("= llm_jax.core.config_text.flatten\n")


@pytest.mark.parametrize("name", ["this.Anything", "subprocess.Popen"])
def test_types_outside_the_package_are_never_imported_nor_called(name):
    """Not even those of modules that are there, if they are no dataclasses."""
    text = config_text.to_text(Outer("a")).replace("inner = llm_jax.imagined.Inner", f"inner = {name}")
    with pytest.raises(ValueError, match=f"inner is a {name}, which cannot be imported"):
        config_text.parse(text)
    assert "this" not in sys.modules


def test_rules_of_a_config_hold_for_text_too():
    text = config_text.to_text(GLUConfig(hidden=8))
    with pytest.raises(ValueError, match="hidden is -8"):
        config_text.parse(text.replace("hidden = 8", "hidden = -8"))
