"""Taps: activations that modules show to whoever asks for them, such as weights of attention or the residual stream.

    output, found = tapped(model, params, tokens_BT, names=("stack/*/mixer/weights",))

What nobody asks for is not computed.
"""

import contextvars
import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from llm_jax.core.checks import check, did_you_mean

COLLECTION = "taps"
"""The collection of variables that taps are kept in; a loop over layers stacks those of its layers."""


@dataclasses.dataclass(frozen=True)
class _Request:
    names: tuple[str, ...]
    seen: set[str] = dataclasses.field(default_factory=set)
    """Names of all taps that were passed."""


_REQUEST: contextvars.ContextVar[_Request | None] = contextvars.ContextVar("request", default=None)


def tap(module: nn.Module, name: str, value: Callable[[], jax.Array]) -> None:
    """Shows `value()` as `name` of the module to `tapped`, and does nothing elsewhere. `name` must not be that of a
    parameter or a submodule."""
    request = _REQUEST.get()
    if request is None or not module.is_mutable_collection(COLLECTION):
        return
    path = "/".join((*module.path, name))
    request.seen.add(path)
    if any(fnmatch.fnmatchcase(path, one) for one in request.names):
        module.sow(COLLECTION, name, value())


def tapped(
    model: nn.Module, params: Any, *arguments: Any, names: Sequence[str], method: str | None = None, rngs: Any = None
) -> tuple[Any, dict[str, jax.Array]]:
    """What a method of the model gives with these parameters, and the taps that were asked for, by their names.

    A name is the path of a module in the parameters and that of the tap: `stack/segment_0/block_0/mixer/weights`. Taps
    of a stack have a leading axis for the layers of their segment. A module that is called more than once has a
    tap for each call, `<name>/0`, `<name>/1`. It can be called under `jax.jit` and differentiated.

    Args:
      names: of taps; `*` stands for any characters.

    Raises:
      ValueError: for a name that no tap has. There are none in a call with a cache, or in stages of a pipeline.
    """
    request = _Request(tuple(names))
    token = _REQUEST.set(request)
    try:
        output, variables = model.apply({"params": params}, *arguments, method=method, rngs=rngs, mutable=[COLLECTION])
    finally:
        _REQUEST.reset(token)
    there = sorted(request.seen)
    for name in names:
        check(
            bool(fnmatch.filter(there, name)),
            f"no tap is named {name!r}{did_you_mean(name, there)}; this call has {', '.join(there) or 'none'}",
        )
    found, made = {}, cast("dict[str, tuple]", flatten_dict(variables.get(COLLECTION, {}), sep="/"))
    for name, values in made.items():
        found |= {name: values[0]} if len(values) == 1 else {f"{name}/{call}": one for call, one in enumerate(values)}
    return output, found
