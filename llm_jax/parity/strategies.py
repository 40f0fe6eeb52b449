"""The layouts over eight devices that must train equally, and the collectives that each must use."""

import dataclasses
from typing import Any

from llm_jax.sharding import rules
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import (
    AllToAll,
    Combined,
    ContextParallel,
    DataParallel,
    ExpertParallel,
    FullySharded,
    PipelineParallel,
    Ring,
    ShardingConfig,
    TensorParallel,
)

DEVICES = 8

GATHER, REDUCE = "all-gather", "all-reduce"
EXCHANGE, PASS = "all-to-all", "collective-permute"


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A layout and the expected properties of its compiled program."""

    sharding: ShardingConfig
    parameters: int = 1
    """Number of shards of parameters, except norms and similarly small ones."""
    optimizer: int = 1
    """Number of shards of the optimizer state."""
    present: tuple[str, ...] = (REDUCE,)
    """Collectives that must appear."""
    absent: tuple[str, ...] = ()
    """Collectives that must not appear."""
    within: str = ""
    """Substring of the paths of the parameters to which the numbers of shards apply."""
    experts: int | None = None
    """Number of shards of the parameters of experts and of their optimizer state; tokens are then exchanged by
    all-to-all. None: as other parameters, and tokens are not exchanged."""


def _strategy(
    strategy: rules.Strategy,
    parameters: int,
    optimizer: int,
    present: tuple[str, ...],
    absent: tuple[str, ...] = (),
    within: str = "",
    experts: int | None = None,
    offload: bool = False,
    data: int = 1,
    **mesh: int,
) -> Strategy:
    sizes: dict[str, Any] = {"data": data} | mesh
    sharding = ShardingConfig(MeshConfig(**sizes), strategy, offload)
    return Strategy(sharding, parameters, optimizer, present, absent, within, experts)


_STACK = "stack"
_NO_EXCHANGE = (GATHER, EXCHANGE, PASS)

STRATEGIES: dict[str, Strategy] = {
    "data parallel": _strategy(DataParallel(), 1, 1, (REDUCE,), _NO_EXCHANGE, data=8),
    "pmap": _strategy(DataParallel(use_pmap=True), 1, 1, (REDUCE,), _NO_EXCHANGE, data=8),
    "ZeRO-1": _strategy(FullySharded(stage=1), 1, 8, (REDUCE, GATHER), fsdp=8),
    "ZeRO-2": _strategy(FullySharded(stage=2), 1, 8, (REDUCE, GATHER), fsdp=8),
    "ZeRO-3 (FSDP)": _strategy(FullySharded(), 8, 8, (REDUCE, GATHER), fsdp=8),
    "FSDP, replicas of it": _strategy(FullySharded(), 4, 4, (REDUCE, GATHER), data=2, fsdp=4),
    "FSDP, state in host memory": _strategy(FullySharded(), 8, 8, (REDUCE, GATHER), offload=True, fsdp=8),
    "tensor": _strategy(TensorParallel(), 4, 4, (REDUCE,), data=2, tensor=4),
    "tensor, sequence": _strategy(TensorParallel(sequence=True), 4, 4, (GATHER,), data=2, tensor=4),
    "expert axis": _strategy(ExpertParallel(), 1, 1, (REDUCE,), _NO_EXCHANGE, experts=8, expert=8),
    "ring": _strategy(ContextParallel(Ring()), 1, 1, (REDUCE, PASS), data=2, context=4),
    "all-to-all": _strategy(ContextParallel(AllToAll()), 1, 1, (REDUCE, EXCHANGE), (), data=2, context=4),
    "pipeline": _strategy(PipelineParallel(4), 4, 4, (REDUCE, PASS), within=_STACK, data=2, stage=4),
    "pipeline, two virtual stages": _strategy(
        PipelineParallel(4, 2), 4, 4, (REDUCE, PASS), within=_STACK, data=2, stage=4
    ),
    "FSDP x tensor": _strategy(Combined(FullySharded(), TensorParallel()), 8, 8, (REDUCE, GATHER), fsdp=2, tensor=4),
    "FSDP x tensor, sequence": _strategy(
        Combined(FullySharded(), TensorParallel(sequence=True)), 4, 4, (REDUCE, GATHER), data=2, fsdp=2, tensor=2
    ),
    "ZeRO-1 x tensor": _strategy(
        Combined(FullySharded(stage=1), TensorParallel()), 2, 8, (REDUCE, GATHER), fsdp=4, tensor=2
    ),
    "FSDP x ring": _strategy(
        Combined(FullySharded(), ContextParallel(Ring())), 2, 2, (REDUCE, GATHER, PASS), fsdp=2, context=4
    ),
    "FSDP x tensor x ring": _strategy(
        Combined(FullySharded(), Combined(TensorParallel(), ContextParallel(Ring()))),
        *(4, 4, (REDUCE, GATHER, PASS)),
        fsdp=2,
        context=2,
        tensor=2,
    ),
    "FSDP x tensor, sequence x all-to-all": _strategy(
        Combined(FullySharded(), Combined(TensorParallel(sequence=True), ContextParallel(AllToAll()))),
        *(4, 4, (REDUCE, GATHER, EXCHANGE)),
        fsdp=2,
        context=2,
        tensor=2,
    ),
    "FSDP x pipeline": _strategy(
        Combined(FullySharded(), PipelineParallel(4)), 8, 8, (REDUCE, GATHER, PASS), within=_STACK, fsdp=2, stage=4
    ),
    "ZeRO-1 x tensor x pipeline": _strategy(
        Combined(FullySharded(stage=1), Combined(TensorParallel(), PipelineParallel(2))),
        *(4, 8, (REDUCE, PASS)),
        within=_STACK,
        fsdp=2,
        stage=2,
        tensor=2,
    ),
    "expert x FSDP": _strategy(
        *(Combined(ExpertParallel(), FullySharded()), 8, 8, (REDUCE, GATHER)),
        experts=8,
        fsdp=4,
        expert=2,
    ),
    "expert x tensor, sequence": _strategy(
        *(Combined(ExpertParallel(), TensorParallel(sequence=True)), 2, 2, (REDUCE, GATHER)),
        experts=8,
        expert=4,
        tensor=2,
    ),
    "expert x pipeline": _strategy(
        *(Combined(ExpertParallel(), PipelineParallel(4, 2)), 4, 4, (REDUCE, PASS)),
        experts=8,
        within=_STACK,
        stage=4,
        expert=2,
    ),
    "expert x ring": _strategy(
        *(Combined(ExpertParallel(), ContextParallel(Ring())), 1, 1, (REDUCE, PASS)),
        experts=4,
        expert=4,
        context=2,
    ),
    "pipeline x ring": _strategy(
        Combined(PipelineParallel(2), ContextParallel(Ring())),
        *(2, 2, (REDUCE, PASS)),
        within=_STACK,
        data=2,
        stage=2,
        context=2,
    ),
}
