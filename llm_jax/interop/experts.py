"""The tensors of layers with experts: what a family file says of a router, of experts, of what all tokens share.

Published checkpoints hold every expert's matrices by themselves, or those of all experts of a layer as one tensor; the
letters are those of mapping.py.
"""

from collections.abc import Iterator

from llm_jax.interop import parts
from llm_jax.interop.mapping import Tensor


def router(place: parts.Place, name: str, bias: bool = False) -> Iterator[Tensor]:
    """The matrix that scores experts, [expert, input]."""
    yield from parts.linear(place, name, "x d", "d", (place.leaf("ffn/router/scores", "d x"),), bias)


def each(place: parts.Place, name: str, into: dict[str, str], down: str) -> Iterator[Tensor]:
    """The experts one by one.

    Args:
      name: start of their names, up to their numbers.
      into, down: as of `parts.ffn`, what follows the number.
    """
    config = place.block.ffn
    for number in range(config.count):
        one = f"{name}{number}"
        theirs = {ours: f"{one}.{part}" for ours, part in into.items()}
        yield from parts.ffn(place, theirs, f"{one}.{down}", path="ffn/experts", config=config.expert, expert=number)


LLAMA = {"gate": "gate_proj", "up": "up_proj"}, "down_proj"
"""What follows an expert's number where its matrices have LLaMA's names."""


def shared(place: parts.Place, name: str, gate: str | None = None) -> Iterator[Tensor]:
    """The expert for all tokens under LLaMA's names, and its gate."""
    yield from parts.llama_ffn(place, name, path="ffn/shared", config=place.block.ffn.shared)
    if gate is not None:
        yield from parts.linear(place.with_sizes(e=1), gate, "e d", "d", (place.leaf("ffn/shared_gate", "d e"),), False)
