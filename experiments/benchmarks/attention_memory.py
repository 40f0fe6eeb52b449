"""Peak temporary memory and FLOPs of attention by kernel and length: what grows with the square, and what does not.

Command: python experiments/benchmarks/attention_memory.py [--lengths 1024 2048] [--window 1024] [--publish]

Measured is softmax(q k^T) v of one layer alone, forward and backward, in bfloat16, causal rows of one document. Both
figures are the compiler's own. Nothing is allocated: programs are compiled from shapes. The compiler counts the body of
a loop once, so the FLOPs of the chunked kernel, a loop over pairs of blocks, are those of one pair times the number of
pairs that it visits. Read down a column: what doubles from one length to the next is linear, what grows fourfold is
quadratic.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from tables import machine, markdown, publish

from llm_jax.layers.attention import chunked
from llm_jax.layers.attention.kernels import BlockedKernel, ChunkedKernel, DotProductKernel, Kernel, PlainKernel
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.sequence import SequenceInfo


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Shapes of the layer."""

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    """Tokens of a row."""
    window: int | None = None
    """Tokens that a token sees; None: all before it."""
    batch: int = 1
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    block: int = 128
    """Queries per block of the blocked kernel."""
    chunk: int = 512
    """Queries and keys per block of the chunked kernel."""
    publish: bool = False
    """Write the table into experiments/README.md."""
    smoke: bool = False
    """Only see that it runs: tiny shapes, no publishing."""


SMOKE = {"lengths": (64, 128), "heads": 2, "kv_heads": 1, "head_dim": 8, "block": 16, "chunk": 16, "publish": False}


def pairs(arguments: Arguments, length: int) -> Pairs:
    """Causal rows of one document."""
    place = SequenceInfo(jnp.broadcast_to(jnp.arange(length), (arguments.batch, length)))
    return Pairs(Causal(arguments.window), place, None, ScoresConfig())


def compiled(arguments: Arguments, kernel: Kernel, length: int) -> jax.stages.Compiled:
    """Gradients of queries, keys and values, from shapes alone."""

    def loss(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(kernel.attend(*arrays, pairs(arguments, length)).astype(jnp.float32))

    heads = (arguments.heads, arguments.kv_heads, arguments.kv_heads)
    shapes = [(arguments.batch, number, length, arguments.head_dim) for number in heads]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()


def flops(arguments: Arguments, kernel: Kernel, length: int, program: jax.stages.Compiled) -> float:
    """The compiler's count; of a loop, that of one turn times the turns."""
    if not isinstance(kernel, ChunkedKernel):
        return program.cost_analysis()["flops"]
    first, last = chunked.visits(pairs(arguments, length), kernel.block)
    size = min(kernel.block, length)
    return float((last - first).sum()) * compiled(arguments, kernel, size).cost_analysis()["flops"]


def main(arguments: Arguments) -> None:
    """Compiles every program and prints the table."""
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    kernels = (PlainKernel(), BlockedKernel(arguments.block), ChunkedKernel(arguments.chunk), DotProductKernel("xla"))
    header, rows = ("length", "kernel", "peak temporary MiB", "of plain", "GFLOPs", "of plain"), []
    for length in arguments.lengths:
        plain = None
        for kernel in kernels:
            program = compiled(arguments, kernel, length)
            work = flops(arguments, kernel, length, program) / 1e9
            figures = program.memory_analysis().temp_size_in_bytes / 2**20, work
            plain = plain or figures
            memory, share = (f"{figure / first:.2f}" for figure, first in zip(figures, plain, strict=True))
            row = (f"{length:,}", type(kernel).__name__, f"{figures[0]:,.1f}", memory, f"{figures[1]:,.2f}", share)
            rows.append(row)
            print(*row, sep=", ", flush=True)
    shape = (
        f"batch {arguments.batch}, {arguments.heads} heads of {arguments.head_dim}, {arguments.kv_heads} key/value; "
        f"window {arguments.window}; blocks of {arguments.block}, chunks of {arguments.chunk}; "
        f"{jax.default_backend()} compiler"
    )
    text = f"{machine('jax')}\n\n{shape}\n\n{markdown(header, rows)}"
    print(f"\n{text}")
    if arguments.publish:
        publish("attention_memory", text)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))
