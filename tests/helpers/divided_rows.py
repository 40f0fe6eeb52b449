"""A program, to be run with eight fake devices: attention over divided rows against the plain kernel, printed as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.divided_rows exchanges
"""

import collections
import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import garbage
from llm_jax.layers.attention import blocks, ring
from llm_jax.layers.attention import context_parallel as exchange
from llm_jax.layers.attention.kernels import BlockedKernel, ChunkedKernel, Kernel, PlainKernel
from llm_jax.layers.attention.masks import Bidirectional, BidirectionalWindow, Causal, Mask, Permuted, PrefixCausal
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.positions.alibi import ALiBiConfig
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.planning.program import Program, read
from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import AllToAll, Combined, ContextParallel, Exchange, Ring, ShardingConfig, TensorParallel

B, N, K, T, S, H = 4, 8, 2, 32, 16, 4
MESHES = {
    "2": MeshConfig(data=4, context=2),
    "4": MeshConfig(data=2, context=4),
    "8": MeshConfig(data=1, context=8),
    "2 and tensor 2": MeshConfig(data=2, context=2, tensor=2),
}
EXCHANGES = {
    "ring": Ring(block=3),
    "contiguous ring": Ring(balanced=False, block=4),
    "all to all": AllToAll(),
}
KERNELS = (BlockedKernel(8), ChunkedKernel(5), PlainKernel())


def _packed(length: int, seed: int) -> SequenceInfo:
    """Rows of three documents and some padding at the end, with an order of prediction and prefixes."""
    generator = np.random.default_rng(seed)
    segments, positions, order = np.zeros((3, B, length), np.int32)
    for row in range(B):
        cuts = [0, *sorted(generator.choice(np.arange(1, length - 2), 2, replace=False)), length - row % 3]
        for document, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False), start=1):
            segments[row, start:stop], positions[row, start:stop] = document, np.arange(stop - start)
            order[row, start:stop] = generator.permutation(stop - start)
    arrays = {"order_BT": jnp.asarray(order), "prefix_BT": jnp.asarray(positions < 4)}
    return SequenceInfo(*map(jnp.asarray, (positions, segments)), **arrays)


ROW = SequenceInfo(jnp.broadcast_to(jnp.arange(T), (B, T)))
PACKED, MEMORY = _packed(T, 0), _packed(S, 1)
CAUSAL = Causal()
ALIBI, LEARNED = ALiBiConfig(), RelativeBiasConfig(8, 6)
BOTH_WAYS = RelativeBiasConfig(8, 6, bidirectional=True)
# Mask, key/value heads, queries, slots, scores.
CASES: dict[str, tuple[Mask, int, SequenceInfo, SequenceInfo | None, ScoresConfig]] = {
    "causal": (Causal(), K, ROW, None, ScoresConfig()),
    "causal, packed, learned bias": (Causal(), K, PACKED, None, ScoresConfig(bias=LEARNED)),
    "window, linear bias, scale": (Causal(5), N, ROW, None, ScoresConfig(0.7, bias=ALIBI)),
    "wide window, packed, cap": (Causal(20), K, PACKED, None, ScoresConfig(0.9, softcap=0.7)),
    "permuted": (Permuted(), N, PACKED, None, ScoresConfig()),
    "prefix, packed": (PrefixCausal(), K, PACKED, None, ScoresConfig()),
    "bidirectional, packed, cap, linear bias": (Bidirectional(), K, PACKED, None, ScoresConfig(None, 0.7, ALIBI)),
    "bidirectional window, packed": (BidirectionalWindow(6), K, PACKED, None, ScoresConfig()),
    "memory, learned bias": (Bidirectional(), K, PACKED, MEMORY, ScoresConfig(bias=BOTH_WAYS)),
    "window, packed, sinks": (Causal(9), K, PACKED, None, ScoresConfig(sinks=True)),
    "bidirectional, learned bias, sinks": (Bidirectional(), N, ROW, None, ScoresConfig(bias=BOTH_WAYS, sinks=True)),
}


def layout(mesh: str, exchange: Exchange) -> Layout:
    """With TensorParallel where the mesh has such an axis."""
    strategy = ContextParallel(exchange)
    strategy = Combined(strategy, TensorParallel()) if MESHES[mesh].tensor > 1 else strategy
    return Layout.of(ShardingConfig(MESHES[mesh], strategy))


def outcome(case: str, attend: Any) -> dict[str, np.ndarray]:
    """Output at tokens that see something, and the gradients of queries, keys, values, table and sinks."""
    mask, kv_heads, queries, slots, scores = CASES[case]
    generator, keys = np.random.default_rng(1), T if slots is None else S
    shapes = [(B, N, T, H), (B, kv_heads, keys, H), (B, kv_heads, keys, H), (8, N), (N,), (B, N, T, H)]
    *arrays, table, sinks, cotangent = (jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes)
    seeing = np.asarray(Pairs(mask, queries, slots, scores).allowed()).any(axis=-1)[:, None, :, None]

    @jax.jit
    def run(arrays, learned, cotangent):
        def run(arrays, learned):
            table, sinks = learned
            return attend(*arrays, Pairs(mask, queries, slots, scores, table, sinks if scores.sinks else None))

        y, pull = jax.vjp(run, arrays, learned)
        return y * seeing, pull(cotangent * seeing)

    y, (gradients, learned_gradients) = jax.block_until_ready(run(arrays, (table, sinks), cotangent))
    return {name: np.asarray(x) for name, x in zip("yqkvts", (y, *gradients, *learned_gradients), strict=True)}


def divided(case: str, layout: Layout, kernel: Kernel) -> dict[str, np.ndarray]:
    """`outcome` under a layout."""
    with partition.activate(layout):
        return outcome(case, functools.partial(exchange.attend, kernel, cached=False))


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest, relative to the largest number of each array."""
    return max(float(np.abs(one[name] - other[name]).max() / (np.abs(other[name]).max() + 1e-30)) for name in other)


def exchanges() -> dict[str, float]:
    """For every case and exchange, on one of the meshes, how far it is from the plain kernel."""
    found = {}
    for number, case in enumerate(CASES):
        plain = outcome(case, PlainKernel().attend)
        for shift, (name, how) in enumerate(EXCHANGES.items()):
            mesh = list(MESHES)[(number + shift) % len(MESHES)]
            run = divided(case, layout(mesh, how), KERNELS[number % len(KERNELS)])
            found[f"{name}; {mesh}; {case}"] = difference(run, plain)
    return found


def compiled(
    layout: Layout,
    length: int,
    mask: Mask = CAUSAL,
    names: tuple[str, ...] | None = None,
    heads: int = N,
) -> Program:
    """Forward and backward pass over rows of one document, as the compiler made it; with a remat policy that keeps
    `names`, if they are given."""
    sequence = SequenceInfo(jnp.broadcast_to(jnp.arange(length), (B, length)))

    def loss(arrays):
        attend = lambda *arrays: exchange.attend(  # noqa: E731
            ChunkedKernel(64), *arrays, Pairs(mask, sequence, None, ScoresConfig()), False
        )
        if names is not None:
            attend = jax.checkpoint(attend, policy=jax.checkpoint_policies.save_only_these_names(*names))
        return jnp.sum(jnp.sin(attend(*arrays)))

    shardings = [layout.sharding("batch", word, "length") for word in ("heads", "kv_heads", "kv_heads")]
    arrays = [jax.ShapeDtypeStruct((B, number, length, H), jnp.float32) for number in (heads, K, K)]
    with partition.activate(layout):
        jax.eval_shape(loss, arrays)  # what we refuse, before JAX refuses it
        step = jax.jit(jax.grad(loss), in_shardings=(shardings,), out_shardings=shardings)
        return read(step.lower(arrays).compile())


def collectives(program: Program) -> dict[str, int]:
    """How often each kind is executed."""
    found = collections.Counter()
    for one in program.collectives:
        found[one.kind] += one.executions
    return dict(found)


def visits(exchange: Ring, mask: Mask = CAUSAL) -> list[int]:
    """How often two blocks met on each of eight devices, counted where they meet."""
    counts, tile = collections.Counter(), blocks.tile

    def counted(*arguments):
        jax.debug.callback(lambda device: counts.update([int(device)]), jax.lax.axis_index("context"))
        return tile(*arguments)

    arrays = [jnp.ones((B, heads, T, H)) for heads in (N, K, K)]
    blocks.tile = counted
    try:
        with partition.activate(layout("8", exchange)):
            whole = Pairs(mask, ROW, None, ScoresConfig())
            run = jax.jit(lambda *arrays: ring.attend(partition.active(), *arrays, whole))
            jax.block_until_ready(run(*arrays))
            jax.effects_barrier()
    finally:
        blocks.tile = tile
    return [counts[device] for device in range(8)]


def message(function: Any) -> str:
    """Of the ValueError that a call raises."""
    try:
        function()
    except ValueError as error:
        return str(error)
    return "none"


def doubled(x: jax.Array) -> jax.Array:
    """Twice as much, by every device of the mesh `2` for its own rows."""
    with partition.activate(layout("2", AllToAll())):
        return partition.per_device(lambda x: 2 * x, (("batch",),), ("batch",))(x)


def rings() -> dict[str, Any]:
    """What rings visit, send, keep and refuse."""
    balanced, plain = Ring(block=2), Ring(balanced=False, block=2)
    return {
        "visits": {"balanced": visits(balanced), "contiguous": visits(plain), "window": visits(plain, Causal(3))},
        "collectives": {
            "all": collectives(compiled(layout("8", plain), T, Bidirectional())),
            "window": collectives(compiled(layout("8", plain), T, Causal(3))),
            "context kept": collectives(compiled(layout("8", plain), T, Bidirectional(), ("context",))),
            "balanced": collectives(compiled(layout("8", balanced), T)),
            "nothing kept": collectives(compiled(layout("8", plain), T, Bidirectional(), ("other",))),
            "all to all": collectives(compiled(layout("2 and tensor 2", AllToAll()), T)),
            "all to all, copies": collectives(compiled(layout("4", AllToAll()), T)),
        },
        "temporary": [compiled(layout("8", Ring(block=64)), length).memory.temporary for length in (2048, 4096)],
        "messages": {
            "shards": message(lambda: compiled(layout("8", balanced), 36)),
            "trade": message(lambda: compiled(layout("8", balanced), 40)),
            "unbalanced": message(lambda: compiled(layout("8", plain), 40)),
            "rows": message(lambda: doubled(jnp.ones(3))),
            "no rows": message(lambda: doubled(jnp.ones(4))),
            "heads": message(lambda: compiled(layout("8", AllToAll()), T, heads=4)),
        },
    }


def main() -> None:
    """Prints what the part gives that the command line names."""
    print(json.dumps({"exchanges": exchanges, "rings": rings}[sys.argv[1]]()))


if __name__ == "__main__":
    garbage.postpone()
    main()
