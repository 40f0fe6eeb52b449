"""Tables that map the options of a config.json to the arguments of a family's function, and back.

A table is a tuple of entries. `read` converts options to arguments, `write` converts a model config to options.
Defaults are those of transformers' config classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from llm_jax.core.checks import check, given
from llm_jax.interop import changes, expert_tensors, parts
from llm_jax.interop.rope_options import (
    longest,
    read_partial_rope,
    read_rope,
    write_partial_rope,
    write_rope,
    written_length,
)
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.models.config import ModelConfig, TransformerConfig
from llm_jax.models.heads import TiedHead

Arguments = dict[str, Any]

NEEDED: Any = object()
"""The default of a required option."""


class Entry(Protocol):
    """One or more options of a config.json."""

    def read(self, settings: Settings, found: Arguments, /) -> Arguments:
        """Arguments from the options and from the arguments `found` by earlier entries. ValueError for an unsupported
        value."""
        ...

    def write(self, config: Any, /) -> dict[str, Any]:
        """The options of a model. ValueError for a model that they cannot express."""
        ...


Table = tuple[Entry, ...]


def _attention(config: ModelConfig) -> AttentionConfig:
    return parts.attention_of(parts.first(config.stacks[-1]))


_HELD: dict[str, Callable[[Any], Any]] = {
    "layers": lambda config: config.stacks[0].depth,
    "decoder_layers": lambda config: config.stacks[-1].depth,
    "heads": lambda config: _attention(config).heads,
    "kv_heads": lambda config: _attention(config).kv_heads,
    "head_dim": lambda config: _attention(config).head_dim,
    "bias": lambda config: _attention(config).bias,
    "clip": lambda config: _attention(config).clip,
    "window": lambda config: parts.window_of(_attention(config)),
    "width": lambda config: config.width,
    "hidden": lambda config: parts.plain_ffn(config.stacks[-1]).hidden,
    "activation": lambda config: parts.plain_ffn(config.stacks[-1]).activation,
    "ffn_bias": lambda config: parts.plain_ffn(config.stacks[-1]).bias,
    "epsilon": lambda config: parts.norm_of(parts.first(config.stacks[-1])).epsilon,
    "vocab_size": lambda config: config.vocab_size,
    "max_length": lambda config: config.stacks[-1].max_length,
    "tied": lambda config: isinstance(config.stacks[-1].head, TiedHead),
    "embed_width": lambda config: config.embed.table_width(config.width),
    "experts": lambda config: parts.expert_layer(config.stacks[-1]).count,
    "expert_hidden": lambda config: parts.expert_layer(config.stacks[-1]).expert.hidden,
    "shared_hidden": lambda config: (
        given(
            parts.expert_layer(config.stacks[-1]).shared, "the MoE layer has no shared expert: this family requires one"
        ).hidden
    ),
    "top": lambda config: parts.router_of(parts.expert_layer(config.stacks[-1])).top,
    "normalized": lambda config: parts.router_of(parts.expert_layer(config.stacks[-1])).normalized,
    "load": lambda config: expert_tensors.load_coefficient(config.stacks[-1]),
    "z": lambda config: expert_tensors.z_coefficient(config.stacks[-1]),
}
"""{argument: its value in a model}. Values that all blocks share are read from the first block, and in an
encoder-decoder from the decoder."""


@dataclasses.dataclass(frozen=True)
class Field:
    """An option with the value of one argument."""

    option: str
    argument: str
    default: Any = NEEDED
    """Value if the file does not state the option, or a function of the arguments of earlier entries."""
    held: Callable[[Any], Any] | None = None
    """Its value in a model; None: as `_HELD` defines it."""
    older: tuple[str, ...] = ()
    """Other names of the option in older files."""
    null: bool = False
    """Whether null means None; otherwise null means that the option is absent."""

    def read(self, settings: Settings, found: Arguments) -> Arguments:
        return {self.argument: self.stated(settings, found)}

    def stated(self, settings: Settings, found: Arguments) -> Any:
        """The value of the option, or its default."""
        if self.default is NEEDED:
            return settings.need(self.option, *self.older)
        default = self.default(found) if callable(self.default) else self.default
        if self.null:
            return settings.stated(self.option, default)
        return settings.given(self.option, *self.older, default=default)

    def write(self, config: Any) -> dict[str, Any]:
        return {self.option: (self.held or _HELD[self.argument])(config)}


@dataclasses.dataclass(frozen=True)
class Nonlinearity:
    """The option that names the activation function of the ffn."""

    option: str
    default: str = "gelu"

    def read(self, settings: Settings, found: Arguments) -> Arguments:
        return {"activation": settings.activation(self.option, default=self.default)}

    def write(self, config: Any) -> dict[str, Any]:
        return {self.option: activation_name(_HELD["activation"](config))}


@dataclasses.dataclass(frozen=True)
class Only:
    """An option with one supported value, which is also its default."""

    option: str
    supported: Any
    """The value, or a function of the arguments of earlier entries."""
    written: Any = NEEDED
    """The value to write, or a function of the model; NEEDED: the option is not written."""

    def read(self, settings: Settings, found: Arguments) -> Arguments:
        supported = self.supported(found) if callable(self.supported) else self.supported
        settings.only(self.option, supported, default=supported)
        return {}

    def write(self, config: Any) -> dict[str, Any]:
        if self.written is NEEDED:
            return {}
        return {self.option: self.written(config) if callable(self.written) else self.written}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A pair of functions, for options that do not map to arguments one to one."""

    read: Callable[[Settings, Arguments], Arguments] = lambda settings, found: {}
    write: Callable[[Any], dict[str, Any]] = lambda config: {}


def constant(**options: Any) -> Pair:
    """Options that are written and not read."""
    return Pair(write=lambda config: options)


@dataclasses.dataclass(frozen=True)
class Nested:
    """Options in a nested object of the file."""

    option: str
    fields: Table

    def read(self, settings: Settings, found: Arguments) -> Arguments:
        return arguments(self.fields, settings.nested(self.option), found)

    def write(self, config: Any) -> dict[str, Any]:
        return {self.option: options(self.fields, config)}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Arguments `rope` and `max_length`. The maximum length depends on the scaling of RoPE."""

    length: str = "max_position_embeddings"
    default: Any = NEEDED
    """Default of the option `length`."""
    base: float = 10_000.0
    """Default of the base."""
    share: float | None = None
    """Default of the rotated share of each head; None: the family rotates whole heads."""

    def read(self, settings: Settings, found: Arguments) -> Arguments:
        length = Field(self.length, "", self.default).stated(settings, found)
        size = found.get("head_dim", found["width"] // found["heads"])
        if self.share is None:
            rope = read_rope(settings, size, length, self.base)
        else:
            rope = read_partial_rope(settings, size, length, self.base, self.share)
        return {"rope": rope, "max_length": longest(rope, length)}

    def write(self, config: Any) -> dict[str, Any]:
        mixer = _attention(config)
        rope = parts.rope_of(mixer)
        written = write_rope(rope) if self.share is None else write_partial_rope(rope, mixer.head_dim)
        return written | {self.length: written_length(rope, config.max_length)}


def arguments(fields: Sequence[Entry], settings: Settings, found: Arguments | None = None) -> Arguments:
    """The arguments of the family's function, from the options of a file.

    Args:
      found: arguments that are already known.

    Raises:
      ValueError: for an option that is missing, of a wrong type or not supported; the message names it.
    """
    made: Arguments = {}
    for entry in fields:
        made |= entry.read(settings, (found or {}) | made)
    return made


def options(fields: Sequence[Entry], config: ModelConfig) -> dict[str, Any]:
    """The options that `arguments` reads. ValueError for a model that they cannot express."""
    written: dict[str, Any] = {}
    for entry in fields:
        written |= entry.write(config)
    return written


def defaults(fields: Table, **changed: Any) -> Table:
    """The table with other defaults for these arguments."""
    known = {entry.argument for entry in fields if isinstance(entry, Field)}
    check(
        set(changed) <= known, f"{sorted(set(changed) - known)} are not in the table: its arguments are {sorted(known)}"
    )
    return tuple(
        dataclasses.replace(entry, default=changed[entry.argument])
        if isinstance(entry, Field) and entry.argument in changed
        else entry
        for entry in fields
    )


def tying(build: Callable[..., TransformerConfig]) -> Callable[..., TransformerConfig]:
    """The family's function with an additional argument `tied`."""
    return lambda *, tied, **given: changes.with_tied(build(**given), tied)


def balancing(build: Callable[..., TransformerConfig]) -> Callable[..., TransformerConfig]:
    """The family's function with an additional argument `load`, a coefficient that replaces its balance losses."""
    return lambda *, load, **given: expert_tensors.balanced(build(**given), load)


def activating(build: Callable[..., TransformerConfig]) -> Callable[..., TransformerConfig]:
    """The family's function with an additional argument `activation`, also for its experts."""
    return lambda *, activation, **given: changes.with_activation(build(**given), activation)
