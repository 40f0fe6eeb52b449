"""A program, to be run with eight fake devices: attention over divided rows against the plain kernel, printed as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.divided_rows
"""

import collections
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import planning
from llm_jax.layers.mixers import blocks, exchange, ring
from llm_jax.layers.mixers.kernels import BlockedKernel, ChunkedKernel, Kernel, PlainKernel
from llm_jax.layers.mixers.masks import Bidirectional, Causal, Mask, Permuted, Placement
from llm_jax.layers.mixers.pairs import Pairs
from llm_jax.layers.mixers.scores import ScoresConfig
from llm_jax.layers.positions.alibi import ALiBiConfig
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import AllToAll, Both, ContextParallel, Exchange, Ring, ShardingConfig, TensorParallel

B, N, K, T, S, H = 4, 8, 2, 32, 16, 4
MESHES = {
    "2": MeshConfig(data=4, context=2),
    "4": MeshConfig(data=2, context=4),
    "8": MeshConfig(data=1, context=8),
    "2 and tensor 2": MeshConfig(data=2, context=2, tensor=2),
}
EXCHANGES = {
    "ring": Ring(block=3),
    "unbalanced ring": Ring(balanced=False, block=4),
    "all to all": AllToAll(),
}


def _packed(length: int, seed: int) -> Placement:
    """Rows of three documents and some padding at the end, with an order of prediction."""
    generator = np.random.default_rng(seed)
    segments, positions, order = np.zeros((3, B, length), np.int32)
    for row in range(B):
        cuts = [0, *sorted(generator.choice(np.arange(1, length - 2), 2, replace=False)), length - row % 3]
        for document, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False), start=1):
            segments[row, start:stop], positions[row, start:stop] = document, np.arange(stop - start)
            order[row, start:stop] = generator.permutation(stop - start)
    return Placement(*map(jnp.asarray, (positions, segments)), order_BT=jnp.asarray(order))


ROW = Placement(jnp.broadcast_to(jnp.arange(T), (B, T)))
PACKED, MEMORY = _packed(T, 0), _packed(S, 1)
ALIBI, LEARNED = ALiBiConfig(), RelativeBiasConfig(8, 6)
BOTH_WAYS = RelativeBiasConfig(8, 6, bidirectional=True)
# Mask, key/value heads, queries, slots, scores.
CASES: dict[str, tuple[Mask, int, Placement, Placement | None, ScoresConfig]] = {
    "causal": (Causal(), K, ROW, None, ScoresConfig()),
    "causal, packed, learned bias": (Causal(), K, PACKED, None, ScoresConfig(bias=LEARNED)),
    "window, linear bias, scale": (Causal(5), N, ROW, None, ScoresConfig(0.7, bias=ALIBI)),
    "wide window, packed, cap": (Causal(20), K, PACKED, None, ScoresConfig(0.9, softcap=0.7)),
    "bidirectional, packed, cap, linear bias": (Bidirectional(), K, PACKED, None, ScoresConfig(None, 0.7, ALIBI)),
    "permuted": (Permuted(), N, PACKED, None, ScoresConfig()),
    "memory, learned bias": (Bidirectional(), K, PACKED, MEMORY, ScoresConfig(bias=BOTH_WAYS)),
}


def layout(mesh: str, exchange: Exchange) -> Layout:
    """With TensorParallel where the mesh has such an axis."""
    strategy = ContextParallel(exchange)
    strategy = Both(strategy, TensorParallel()) if MESHES[mesh].tensor > 1 else strategy
    return Layout.of(ShardingConfig(MESHES[mesh], strategy))


def outcome(case: str, attend: Any) -> dict[str, np.ndarray]:
    """Output at tokens that see something, and the gradients of queries, keys, values and table."""
    mask, kv_heads, queries, slots, scores = CASES[case]
    generator, keys = np.random.default_rng(1), T if slots is None else S
    shapes = [(B, N, T, H), (B, kv_heads, keys, H), (B, kv_heads, keys, H), (8, N), (B, N, T, H)]
    *arrays, table, cotangent = (jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes)
    seeing = np.asarray(Pairs(mask, queries, slots, scores).allowed()).any(axis=-1)[:, None, :, None]

    @jax.jit
    def run(arrays, table, cotangent):
        y, pull = jax.vjp(lambda arrays, table: attend(*arrays, Pairs(mask, queries, slots, scores, table)), arrays, table)
        return y * seeing, pull(cotangent * seeing)

    y, (gradients, table_gradient) = jax.block_until_ready(run(arrays, table, cotangent))
    return {name: np.asarray(x) for name, x in zip("yqkvt", (y, *gradients, table_gradient), strict=True)}


def divided(case: str, layout: Layout, kernel: Kernel) -> dict[str, np.ndarray]:
    """`outcome` under a layout."""
    with partition.activate(layout):
        return outcome(case, functools.partial(exchange.attend, kernel, cached=False))


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest, relative to the largest number of each array."""
    return max(float(np.abs(one[name] - other[name]).max() / (np.abs(other[name]).max() + 1e-30)) for name in other)


if __name__ == "__main__":
    import time
    for case in CASES:
        plain = outcome(case, PlainKernel().attend)
        for mesh in MESHES:
            for name, how in EXCHANGES.items():
                t=time.time()
                kernel = BlockedKernel(8)
                print(case, "|", mesh, "|", name, difference(divided(case, layout(mesh, how), kernel), plain), round(time.time()-t,1), flush=True)
