"""Reads a published config.json option by option. An unsupported option that changes the computation raises an error
that names it."""

from collections.abc import Callable, Sequence, Set
from typing import Any, get_args

from llm_jax.core.checks import check, did_you_mean, shortened
from llm_jax.interop.options import KINDS
from llm_jax.layers.activations import Activation, Gate
from llm_jax.models.heads import AnyHead

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "tanh": "tanh",
}
# A gate without a published name is written under its name here; only the family that has it reads that name.
_NAMES = {name: name for name in get_args(Gate)} | {"gelu_tanh": "gelu_pytorch_tanh", "relu_squared": "relu2"}


class Settings:
    """The options of a config.json, or of an object in it. Every option is checked against `KINDS` when it is read."""

    def __init__(self, options: dict[str, Any], path: str = "", tensors: Set[str] | None = None):
        """
        Args:
          path: prefix of the options' names in error messages: 'rope_scaling.'.
          tensors: names of the tensors in the folder; None: it has no weights.
        """
        self._stated, self._path, self._tensors = options, path, tensors

    def stores(self, tensor: str) -> bool | None:
        """Whether the weights have a tensor of this name; None without weights."""
        return None if self._tensors is None else tensor in self._tensors

    def given(self, *names: str, default: Any = None) -> Any:
        """The first of these options that is present and not null, else the default.

        Raises:
          ValueError: for a value of the wrong type or out of range.
        """
        return next((self._checked(name) for name in names if self._stated.get(name) is not None), default)

    def stated(self, name: str, default: Any) -> Any:
        """The value of the option, None if it is null; the default only if it is absent."""
        return self.given(name) if name in self._stated else default

    def nested(self, *names: str) -> "Settings":
        """The options of the first of these objects that is present and not null; no options if none is."""
        name = next((name for name in names if self._stated.get(name) is not None), names[-1])
        return Settings(self.given(name, default={}), f"{self._path}{name}.")

    def with_option(self, name: str, value: Any) -> "Settings":
        """The options with one value replaced."""
        return Settings(self._stated | {name: value}, self._path, self._tensors)

    def need(self, *names: str) -> Any:
        """As `given`, without a default. ValueError if none of them is present."""
        value = self.given(*names)
        check(
            value is not None,
            f"config.json has no {' or '.join(self._path + name for name in names)}: the option is required; check "
            "that the file is complete",
        )
        return value

    def _checked(self, name: str) -> Any:
        value, kind = self._stated[name], KINDS[name]
        found = f"config.json has {self._path}{name} = {shortened(value)}"
        check(kind.holds(value), f"{found}: it must be {kind.rule}")
        return value

    def only(self, name: str, supported: Any, default: Any) -> None:
        """ValueError unless the option, or its default if it is absent, equals `supported`."""
        value = self.given(name, default=default)
        found = f"config.json has {self._path}{name} = {value!r}"
        check(value == supported, f"{found}: only {supported!r} is supported")

    def activation(self, *names: str, default: str = "gelu", prefix: str = "") -> Activation:
        """The activation function by its name in this package; `prefix` may precede the published name."""
        value = self.given(*names, default=default)
        supported = ", ".join(sorted(_ACTIVATIONS)) + (f", each with the optional prefix {prefix!r}" if prefix else "")
        check(
            value.removeprefix(prefix) in _ACTIVATIONS,
            f"config.json has {names[0]} = {value!r}: supported are {supported}",
        )
        return _ACTIVATIONS[value.removeprefix(prefix)]

    @property
    def classes(self) -> int:
        """Number of classes of a classification head. Older files may state `num_labels` without `id2label`."""
        names = self.given("id2label")
        return self.given("num_labels", default=2) if names is None else len(names)

    def head(self, makers: dict[str, Callable[[], AnyHead | None]], default: str) -> AnyHead | None:
        """The head of the transformers class that `architectures` names, or of the default class.

        Args:
          makers: {class: function that makes its head}.

        Raises:
          ValueError: for several classes, or a class that is not in `makers`.
        """
        kinds = self.given("architectures", default=[default])
        check(len(kinds) == 1, f"config.json has architectures = {kinds}: state one class, that of the head")
        (kind,) = kinds
        check(
            kind in makers,
            f"config.json has architectures = [{kind!r}]: supported are {', '.join(makers)}"
            f"{did_you_mean(kind, makers)}",
        )
        return makers[kind]()


def activation_name(activation: Gate) -> str:
    """The name of the activation function in a config.json."""
    return _NAMES[activation]


def labels(classes: int) -> dict[str, dict]:
    """The options that state the number of classes of a head. A model has no names of classes: they are numbered."""
    names = {str(number): f"LABEL_{number}" for number in range(classes)}
    return {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}


def layer_windows(kinds: list[str], layers: int, window: int | None) -> tuple[int | None, ...]:
    """The attention window of each layer in tokens, from its entry in `layer_types`.

    Raises:
      ValueError: if the number of entries differs from the number of layers, or for an unsupported entry.
    """
    check(
        len(kinds) == layers, f"config.json has {len(kinds)} layer_types and {layers} layers: one per layer is required"
    )
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    check(not unknown, f"config.json has layer_types {unknown}: supported are full_attention and sliding_attention")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def layer_types(windows: Sequence[int | None]) -> list[str]:
    """The `layer_types` of layers with these windows."""
    return ["full_attention" if window is None else "sliding_attention" for window in windows]
