"""The layouts over eight devices that must all train alike, and what each must be seen to do."""

import dataclasses

from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import (
    Both,
    DataParallel,
    ExpertParallel,
    FullySharded,
    ShardingConfig,
    TensorParallel,
)

DEVICES = 8

GATHER, SCATTER, REDUCE = "all-gather", "reduce-scatter", "all-reduce"
EXCHANGE, PASS = "all-to-all", "collective-permute"


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A layout and what the compiled program must show of it."""

    sharding: ShardingConfig
    parameters: int = 1
    """Parts into which parameters are divided, norms and what is as small left out."""
    optimizer: int = 1
    """Parts into which the optimizer's state is divided."""
    present: tuple[str, ...] = (REDUCE,)
    """Kinds of collectives, all of which there must be."""
    absent: tuple[str, ...] = ()
    """Kinds of collectives of which there must be none."""


def _strategy(strategy, parameters, optimizer, present, absent=(), offload=False, **mesh) -> Strategy:
    sharding = ShardingConfig(MeshConfig(**{"data": 1} | mesh), strategy, offload)
    return Strategy(sharding, parameters, optimizer, present, absent)


_NO_EXCHANGE = (GATHER, EXCHANGE, PASS)

STRATEGIES: dict[str, Strategy] = {
    "data parallel": _strategy(DataParallel(), 1, 1, (REDUCE,), _NO_EXCHANGE, data=8),
    "pmap": _strategy(DataParallel(mapped=True), 1, 1, (REDUCE,), _NO_EXCHANGE, data=8),
    "ZeRO-1": _strategy(FullySharded(stage=1), 1, 8, (REDUCE, GATHER), fsdp=8),
    "ZeRO-2": _strategy(FullySharded(stage=2), 1, 8, (REDUCE, GATHER), fsdp=8),
    "ZeRO-3 (FSDP)": _strategy(FullySharded(), 8, 8, (REDUCE, GATHER), fsdp=8),
    "FSDP, replicas of it": _strategy(FullySharded(), 4, 4, (REDUCE, GATHER), data=2, fsdp=4),
    "FSDP, state in host memory": _strategy(FullySharded(), 8, 8, (REDUCE, GATHER), offload=True, fsdp=8),
    "tensor": _strategy(TensorParallel(), 4, 4, (REDUCE,), data=2, tensor=4),
    "tensor, sequence": _strategy(TensorParallel(sequence=True), 4, 4, (GATHER,), data=2, tensor=4),
    "expert axis": _strategy(ExpertParallel(), 1, 1, (REDUCE,), _NO_EXCHANGE, expert=8),
    "FSDP x tensor": _strategy(Both(FullySharded(), TensorParallel()), 8, 8, (REDUCE, GATHER), fsdp=2, tensor=4),
    "FSDP x tensor, sequence": _strategy(
        Both(FullySharded(), TensorParallel(sequence=True)), 4, 4, (REDUCE, GATHER), data=2, fsdp=2, tensor=2
    ),
    "ZeRO-1 x tensor": _strategy(
        Both(FullySharded(stage=1), TensorParallel()), 2, 8, (REDUCE, GATHER), fsdp=4, tensor=2
    ),
}
