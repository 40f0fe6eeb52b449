"""Every config of the package refuses what its annotations exclude, by a ValueError that names the field."""

import dataclasses
import importlib
import math
import pickle
import pkgutil
import types
import typing
from typing import Any, Literal

import numpy as np
import optax
import pytest

import llm_jax
from llm_jax.core.configclass import Unbounded, check_fields, configclass, deferred, validate
from llm_jax.optim import Constant
from llm_jax.optim.schedules import Schedule


@configclass
class Inner:
    size: int = 1
    rate: float = 0.5

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size is {self.size}: it must be greater than 0")


@configclass
class Other:
    """Another choice beside Inner."""


@configclass
class Outer:
    name: str = "a"
    on: bool = False
    inner: Inner | Other | None = None
    words: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    mode: Literal["slow", "fast", 3] = "slow"
    limit: Unbounded = 1.0
    many: tuple[Inner, ...] = ()
    either: Literal["none"] | tuple[Literal["none", "full"], ...] = "none"
    steps: int | None = None
    ratio: float = 1.0
    schedule: Schedule = Constant()


@dataclasses.dataclass(frozen=True)
class OwnPart(Schedule):
    """A config as a user writes it, who does not know configclass."""

    size: int = 1

    def build(self, peak, steps):
        """Nothing here asks for it."""


class Undecorated(OwnPart):
    more: int = 3


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A config that derives from no kind of component."""


@dataclasses.dataclass(frozen=True)
class OwnInner(Inner):
    """A user's subclass with rules of its own."""

    extra: str = "a"

    def __post_init__(self):
        super().__post_init__()


@configclass
class Narrow(Inner):
    size: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.size > 9:
            raise ValueError("size is too large")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": 3}, "Outer.name is 3 (int): it must be a str"),
        ({"on": 1}, "Outer.on is 1 (int): it must be a bool"),
        ({"steps": 2e1}, "Outer.steps is 20.0: it must be an int or None; write 20"),
        ({"steps": 2.5}, "Outer.steps is 2.5: it must be an int or None"),
        ({"steps": True}, "Outer.steps is True (bool): it must be an int or None"),
        ({"steps": "7"}, "Outer.steps is '7': it must be an int or None; write 7"),
        ({"steps": 2**63}, "Outer.steps is 9223372036854775808 (int): it must be an int or None"),
        ({"ratio": math.nan}, "Outer.ratio is nan: it must be a finite float"),
        ({"ratio": -math.inf}, "Outer.ratio is -inf: it must be a finite float"),
        ({"ratio": 10**400}, "Outer.ratio is 1000"),
        ({"ratio": None}, "Outer.ratio is None: it must be a finite float"),
        ({"ratio": np.array(1.0)}, "Outer.ratio is of type numpy.ndarray: it must be a finite float; write a number"),
        ({"limit": math.nan}, "Outer.limit is nan: it must be a float, which may be infinite"),
        ({"words": "abc"}, "Outer.words is 'abc': it must be a tuple of str; write ('abc',)"),
        ({"words": ["a", "b"]}, "Outer.words is ['a', 'b'] (list): it must be a tuple of str; write ('a', 'b')"),
        ({"words": ("a", 3)}, "Outer.words[1] is 3 (int): it must be a str"),
        ({"pair": (1,)}, "Outer.pair is (1,): it must have 2 values, and has 1"),
        ({"pair": (1, "2")}, "Outer.pair[1] is '2': it must be a finite float; write 2.0"),
        ({"mode": "fsat"}, "Outer.mode is 'fsat': it must be one of 'slow', 'fast', 3; did you mean 'fast'?"),
        ({"mode": 3.0}, "Outer.mode is 3.0: it must be one of"),
        ({"either": ("none", "ful")}, "Outer.either[1] is 'ful': it must be one of 'none', 'full'; did you mean"),
        ({"inner": Inner}, "Outer.inner is the class Inner: it must be Inner, Other or None; write Inner(...)"),
        ({"inner": "other"}, "Outer.inner is 'other': it must be Inner, Other or None; write Other(...)"),
        ({"inner": optax.adamw(1e-3)}, "Outer.inner is of type optax"),
        ({"inner": lambda: None}, "Outer.inner is the function <lambda>: it must be Inner, Other or None"),
        ({"many": Inner()}, "Outer.many is of type tests.core.test_configclass.Inner: it must be a tuple of Inner"),
        ({"many": (Inner(), Other())}, "Outer.many[1] is of type"),
        ({"inner": OwnPart()}, "Outer.inner is of type tests.core.test_configclass.OwnPart: it must be Inner, Other"),
        ({"schedule": Undecorated()}, "not a dataclass itself: write @configclass above class Undecorated"),
        ({"schedule": Foreign()}, "it must be a Schedule (Constant, Cosine"),
        ({"schedule": Foreign()}, "; derive Foreign from Schedule of llm_jax.optim.schedules"),
        ({"schedule": "cosine"}, "Outer.schedule is 'cosine': it must be a Schedule"),
        ({"schedule": "cosine"}, "; write Cosine(...)"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_path_and_a_remedy(fields, message):
    with pytest.raises(ValueError) as error:
        Outer(**fields)
    assert message.replace("tests.core.test_configclass", __name__) in str(error.value)


def test_a_dataclass_that_derives_from_a_kind_of_component_is_checked_where_it_is_built():
    with pytest.raises(ValueError, match=r"OwnPart.size is 2.5: it must be an int"):
        OwnPart(size=2.5)


@pytest.mark.parametrize(
    "fields",
    [
        {"ratio": 2},
        {"limit": math.inf},
        {"mode": 3},
        {"either": ("none", "full")},
        {"schedule": OwnPart()},
        {"inner": Narrow()},
        {"many": (Inner(), Narrow())},
        {"pair": (1, 2)},
    ],
)
def test_what_the_annotation_says_is_taken_as_it_is(fields):
    made = Outer(**fields)
    assert all(getattr(made, name) is value for name, value in fields.items())


def test_scalars_of_numpy_become_the_equal_numbers_of_python():
    made = Outer(
        steps=np.int64(3),
        ratio=np.float32(0.5),
        on=np.bool_(True),
        name=np.str_("b"),
        pair=(np.int32(1), np.float64(2)),
    )
    assert made == Outer(steps=3, ratio=0.5, on=True, name="b", pair=(1, 2.0))
    kinds = [type(value) for value in (made.steps, made.ratio, made.on, made.name, *made.pair)]
    assert kinds == [int, float, bool, str, int, float]
    with pytest.raises(ValueError, match=r"Outer.ratio is nan"):
        Outer(ratio=np.float64("nan"))


def test_fields_are_checked_before_rules_and_in_subclasses_too():
    with pytest.raises(ValueError, match=r"Inner.size is '3'"):
        Inner(size="3")
    with pytest.raises(ValueError, match=r"size is 0: it must be greater"):
        Narrow(size=0)
    with pytest.raises(ValueError, match=r"size is too large"):
        Narrow(size=10)
    with pytest.raises(ValueError, match=r"OwnInner.extra is 3"):
        OwnInner(extra=3)
    with pytest.raises(ValueError, match=r"Narrow.rate is 'x'"):
        dataclasses.replace(Narrow(), rate="x")


def test_a_configclass_is_a_frozen_dataclass_that_can_be_pickled():
    made = Outer(inner=Inner(3), many=(Narrow(),))
    assert pickle.loads(pickle.dumps(made)) == made and hash(made) == hash(Outer(inner=Inner(3), many=(Narrow(),)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "b"


def test_an_annotation_that_names_nothing_is_refused():
    @configclass
    class Lost:
        size: "Nowhere" = 1  # noqa: F821

    with pytest.raises(ValueError, match="Lost has an annotation with 'Nowhere'"):
        Lost()


def test_deferred_rules_are_applied_by_validate():
    with deferred():
        wrong, right = Outer(inner=Inner(size=0)), Outer(inner=Inner(size=1))
        untyped = Outer(many=(Inner(), Inner(size="x")))
    validate(right)
    with pytest.raises(ValueError, match="size is 0"):
        validate(wrong)
    with pytest.raises(ValueError, match="Inner.size is 'x'"):
        validate(untyped)
    with pytest.raises(ValueError, match="size is 0"):
        Inner(size=0)


def _configs() -> list[type]:
    """Every configclass of the package."""
    found = {}
    for module in pkgutil.walk_packages(llm_jax.__path__, "llm_jax."):
        if not module.name.endswith("__main__"):
            for one in vars(importlib.import_module(module.name)).values():
                if isinstance(one, type) and "__configclass__" in vars(one):
                    found[f"{one.__module__}.{one.__qualname__}"] = one
    return [found[name] for name in sorted(found)]


CONFIGS = _configs()


def _held(kind: Any) -> set[type]:
    """The dataclasses that an annotation names."""
    if dataclasses.is_dataclass(kind):
        return {kind}
    return set().union(*map(_held, typing.get_args(kind)))


def test_every_config_that_another_holds_is_checked_too():
    from llm_jax.experiment import Experiment

    assert Experiment in CONFIGS and len(CONFIGS) > 100
    held = set().union(*(_held(kind) for one in CONFIGS for kind in typing.get_type_hints(one).values()))
    assert held <= set(CONFIGS), "decorate these with @configclass"


def _sample(kind: Any) -> Any:
    """A value of a type; rules between fields need not hold."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return arguments[0]
    if origin in (typing.Union, types.UnionType):
        return None if type(None) in arguments else _sample(arguments[0])
    if origin is tuple:
        return (_sample(arguments[0]),) if ... in arguments else tuple(map(_sample, arguments))
    if dataclasses.is_dataclass(kind):
        while getattr(kind, "__abstractmethods__", None):
            kind = kind.__subclasses__()[0]
        return kind(**_samples(kind))
    return {int: 1, float: 0.5, str: "a", bool: False, dict: {}}.get(kind)


def _samples(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    required = [one for one in dataclasses.fields(cls) if one.default is dataclasses.MISSING]
    return {one.name: _sample(hints[one.name]) for one in required}


NOWHERE = (object(), [1], {"a": 1}, b"a", 1j, math.nan, lambda: 0, np.zeros(2), int, (object(),), optax.adamw(1e-3))
"""Values that no field takes."""

SOMEWHERE = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    10**18,
    2**64,
    0.0,
    -0.5,
    2.5,
    1e308,
    math.inf,
    "",
    "a",
    "1",
    (),
    (1,),
    ("a",),
)
"""Values of which some fields take some."""


@pytest.mark.parametrize("cls", [one for one in CONFIGS if dataclasses.fields(one)], ids=lambda one: one.__name__)
def test_wrong_values_of_every_field_of_every_config_come_back_as_a_value_error(cls):
    if getattr(cls, "__abstractmethods__", None):
        pytest.skip("an abstract base: its subclasses are tried")
    with deferred():
        valid = _samples(cls)
    for field in dataclasses.fields(cls):
        for value in NOWHERE:
            with pytest.raises(ValueError) as error:
                cls(**valid | {field.name: value})
            assert str(error.value).startswith(f"{cls.__name__}.{field.name}"), (value, error.value)
        for value in SOMEWHERE:
            try:
                made = cls(**valid | {field.name: value})
            except ValueError as error:
                assert str(error), (field.name, value)
            else:
                check_fields(made)
