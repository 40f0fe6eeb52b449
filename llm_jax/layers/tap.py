"""Taps: named activations that callers can request, such as attention weights or the residual stream.

    output, found = tapped(model, params, tokens_BT, names=("stack/*/mixer/weights",))

Taps that are not requested are not computed.
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
"""The variable collection of taps; a scan over layers stacks those of its layers."""


@dataclasses.dataclass(frozen=True)
class _Request:
    names: tuple[str, ...]
    seen: set[str] = dataclasses.field(default_factory=set)
    """Names of all taps of the call, requested or not."""


_REQUEST: contextvars.ContextVar[_Request | None] = contextvars.ContextVar("request", default=None)


def tap(module: nn.Module, name: str, value: Callable[[], jax.Array]) -> None:
    """Records `value()` as tap `name` of the module within `tapped`, if requested, and does nothing otherwise. `name`
    must not be that of a parameter or a submodule."""
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
    """The output of a method of the model with these parameters, and the requested taps by name.

    A name is the path of a module in the parameters and the name of the tap: `stack/segment_0/block_0/mixer/weights`.
    Taps of a stack have a leading axis for the layers of their segment. A module that is called more than once has a
    tap for each call, `<name>/0`, `<name>/1`. The function can be called under `jax.jit` and differentiated.

    Args:
      names: names of taps; `*` matches any characters.

    Raises:
      ValueError: if a name matches no tap. Calls with a KV cache and pipeline stages have no taps.
    """
    # A context variable, because modules ask for the request while the model is traced and are not passed it.
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
