"""A stack of layers run as a pipeline: its stages lie on different devices and work on different rows at a time.

The form is that of Xu et al. 2021 (arXiv:2105.04663, 3.3): what all stages work on is one array with an axis for the
stages, divided over the devices; one step is the same function mapped along this axis, and passing rows on is a
rotation of it, which becomes an exchange between neighbours. The backward pass is the derivative of that loop.

Microbatches wait divided over the stages, and travel to the first one, as what is finished travels back, on a second
ring: rows are never gathered. A group of as many microbatches as stages makes all its rounds before the next one enters
(Narayanan et al. 2021, arXiv:2104.04473, 2.2), so that what leaves the last stage between two rounds is what the first
stage needs next. In the bubble stages work on rows that wait, so that all numbers stay finite, and what they make is
overwritten.

What stages tell beside is kept of all steps, and that of the bubble left out when they are over: at which steps a stage
worked on which rows is known before.

Weights are copied to the replicas before the loop, rather than in it, so that gradients are summed over replicas
after it: once, where the compiler would do it for each microbatch.

Legend: Q groups of microbatches, S stages, P replicas of the pipeline, B rows of a microbatch in a replica,
V rounds, L layers that a stage runs in a round, M microbatches of a group in the order in which they enter, X any axes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.core.checks import given
from llm_jax.sharding import axes, partition
from llm_jax.sharding.mesh import DATA, FSDP, STAGE
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.pipeline_schedule import PipelineSchedule

_REPLICAS = (DATA, FSDP)

_MOVES = frozenset(
    ("broadcast_in_dim", "convert_element_type", "copy", "dynamic_slice", "gather", "reshape", "squeeze", "transpose")
)

Policy = Callable[..., Any]
"""One of `jax.checkpoint_policies`."""

Stage = Callable[[Any, Any, Any, jax.Array, Any], tuple[jax.Array, Any, Any]]
"""(weights of its layers [L, X], what all layers read, key, x [B, X], what belongs to the rows [B, X]) -> x [B, X],
what the layers tell of each row [L, B, X], and their sums over rows [L, X]."""


def schedule() -> PipelineSchedule | None:
    """That of the layout of `partition.activate`; None without one."""
    layout = partition.active()
    return layout.schedule if layout is not None else None


def run(
    stage: Stage, weights: Any, common: Any, key: jax.Array | None, x: jax.Array, rows: Any, keep: Policy | None
) -> tuple[jax.Array, Any, Any]:
    """x [rows, X] through all layers by the schedule of the active layout. Besides what the layers, in order, tell: of
    each row [layers, rows, X], and sums over all rows [layers, X].

    Args:
      stage: runs L layers.
      weights: tree of [layers, X], in the order of the layers.
      common: tree of arrays that every stage reads.
      key: of random numbers; every stage gets another one at every step, in every replica. None: none are drawn.
      rows: tree of [rows, X] that goes with x from stage to stage.
      keep: what the backward pass keeps of a step of a stage, beside what it began with; None: all that it computes.

    Raises:
      ValueError: for a number of rows that cannot be cut into microbatches.
    """
    layout = partition.required()
    plan = given(layout.schedule, f"strategy {type(layout.strategy).__name__} has no pipeline: use PipelineParallel")
    replicas = layout.mesh.shape[DATA] * layout.mesh.shape[FSDP]
    others = layout.parts(axes.BATCH) // (replicas * plan.stages)
    plan.check_rows(len(x), replicas * others)
    waiting = jax.tree.map(lambda leaf: _cut(leaf, plan, replicas, layout), (x, rows))
    weights = jax.tree.map(lambda leaf: _copied(_dealt(leaf, plan), replicas, layout), weights)
    common = jax.tree.map(
        lambda leaf: _copied(jnp.broadcast_to(leaf, (plan.stages, *leaf.shape)), replicas, layout), common
    )
    work = _mapped(stage, plan, keep or _computed)

    def step(carry: tuple[Any, Any], time: jax.Array) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        (x_SPBX, rows), waiting = carry
        keys = None if key is None else jax.random.split(jax.random.fold_in(key, time), (plan.stages, replicas))
        x_SPBX, *told = work(jnp.arange(plan.stages), time, weights, common, keys, x_SPBX, rows)
        held = jax.tree.map(_passed_on, (x_SPBX, rows))
        return _entered(held, waiting, time + 1, plan), tuple(told)

    first = jax.tree.map(lambda leaf: _passed_on(leaf[0]), waiting)
    waiting = jax.tree.map(lambda leaf, rolled: leaf.at[0].set(rolled), waiting, first)
    (_, (x_QSPBX, _)), (of_rows, sums) = jax.lax.scan(step, (first, waiting), jnp.arange(plan.steps))
    of_rows = jax.tree.map(lambda told: _joined_layers(_worked(told, plan)), of_rows)
    sums = jax.tree.map(lambda told: _layers(jnp.sum(_worked(told, plan), axis=(0, 2, 4))), sums)
    # What a group leaves takes the place of the next one, the last group's that of the first.
    return _joined(jnp.roll(x_QSPBX, -1, axis=0)), of_rows, sums


def _mapped(stage: Stage, plan: PipelineSchedule, keep: Policy) -> Callable:
    """`stage` for all stages and replicas at a time; their number and the time come first."""

    # Else the weights of each step would be kept, cut and cast as it uses them.
    @functools.partial(jax.checkpoint, policy=keep, prevent_cse=False)
    def one(number: jax.Array, time: jax.Array, weights: Any, common: Any, key: Any, x_BX: jax.Array, rows: Any) -> Any:
        turn = (time - number) // plan.stages % plan.virtual_stages
        own = jax.tree.map(lambda leaf_VLX: jax.lax.dynamic_index_in_dim(leaf_VLX, turn, keepdims=False), weights)
        with partition.within(STAGE, *_REPLICAS):
            return stage(own, common, key, x_BX, rows)

    replicas = jax.vmap(one, (None, None, 0, 0, 0, 0, 0), spmd_axis_name=_REPLICAS)
    return jax.vmap(replicas, (0, None, 0, 0, 0, 0, 0), spmd_axis_name=STAGE)


def _computed(primitive: Any, *_: Any, **__: Any) -> bool:
    """Policy: all but what is only cut, cast or laid out otherwise."""
    return primitive.name not in _MOVES


def _entered(held: Any, waiting: Any, time: jax.Array, plan: PipelineSchedule) -> tuple[Any, Any]:
    """With a microbatch that waits in the first stage, and what came there from the last stage in its place, where it
    has made all rounds."""
    lap = plan.stages * plan.virtual_stages

    def exchange(held: Any, waiting: Any) -> tuple[Any, Any]:
        group = time // lap % plan.groups
        ring = jax.tree.map(lambda leaf: _passed_on(leaf[group]), waiting)
        ring, held = (jax.tree.map(_first, *pair) for pair in ((held, ring), (ring, held)))
        return held, jax.tree.map(lambda leaf, new: leaf.at[group].set(new), waiting, ring)

    if plan.virtual_stages == 1:
        return exchange(held, waiting)
    return jax.lax.cond(time % lap < plan.stages, exchange, lambda *both: both, held, waiting)


def _passed_on(x_SX: jax.Array) -> jax.Array:
    """To the next stage; from the last to the first.

    By hand: of a rotation of the array the compiler makes this exchange only where nothing obscures it.
    """
    stages = len(x_SX)
    ring = [(stage, (stage + 1) % stages) for stage in range(stages)]
    return _by_stage(lambda x_1X: jax.lax.ppermute(x_1X, STAGE, ring), x_SX)


def _by_stage(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`function` of each stage's part of [S, X] arrays, which may exchange with the others."""
    mesh, divided = partition.required().mesh, PartitionSpec(STAGE)
    return jax.shard_map(function, mesh=mesh, in_specs=divided, out_specs=divided, axis_names={STAGE})(*arrays)


def _first(one_SX: jax.Array, other_SX: jax.Array) -> jax.Array:
    """`one` at the first stage, `other` at all others."""
    stages = jnp.arange(len(one_SX)).reshape(-1, *[1] * (one_SX.ndim - 1))
    return jnp.where(stages == 0, one_SX, other_SX)


def _cut(x: jax.Array, plan: PipelineSchedule, replicas: int, layout: Layout) -> jax.Array:
    """[rows, X] -> [Q, S, P, B, X]. No row leaves its device: a microbatch is of rows that lie at one stage."""
    x_PSBQX = x.reshape(replicas, plan.stages, -1, plan.groups, *x.shape[1:])
    x_QSPBX = jnp.moveaxis(x_PSBQX, (3, 1, 0, 2), (0, 1, 2, 3))
    return _laid(x_QSPBX, layout, None, STAGE, _REPLICAS)


def _joined(x_QSPBX: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    x_PSBQX = jnp.moveaxis(x_QSPBX, (0, 1, 2, 3), (3, 1, 0, 2))
    return x_PSBQX.reshape(-1, *x_QSPBX.shape[4:])


def _worked(told: jax.Array, plan: PipelineSchedule) -> jax.Array:
    """What stages told [steps, S, X] of rows, and not of those that waited in the bubble: [Q, V, M, S, X]."""
    # A stage begins as many steps after the first one as it stands behind it.
    worked = plan.virtual_stages * plan.microbatches
    by_stage = [told[stage : stage + worked, stage] for stage in range(plan.stages)]
    return jnp.stack(by_stage, axis=1).reshape(
        plan.groups, plan.virtual_stages, plan.stages, plan.stages, *told.shape[2:]
    )


def _joined_layers(told_QVMSPLBX: jax.Array) -> jax.Array:
    """Rows as `_joined` has them, layers in their order: [layers, rows, X]."""
    # The last one that waits is the first to enter.
    told_QVMSPLBX = jnp.flip(told_QVMSPLBX, axis=2)
    told_VSLQMPBX = jnp.moveaxis(told_QVMSPLBX, (1, 3, 5, 0, 2, 4, 6), range(7))
    return jax.vmap(_joined)(_layers(told_VSLQMPBX))


def _layers(told_VSLX: jax.Array) -> jax.Array:
    """[V, S, L, X] -> [layers, X]."""
    return told_VSLX.reshape(-1, *told_VSLX.shape[3:])


def _dealt(leaf: jax.Array, plan: PipelineSchedule) -> jax.Array:
    """[layers, X] -> [S, V, L, X]: in each round every stage runs the layers after those of the stage before it.

    They lie the other way, the layers of one stage together, so that most are sent to another: by hand, since the
    compiler sends them several times.
    """
    leaf_SVLX = leaf.reshape(plan.stages, plan.virtual_stages, -1, *leaf.shape[1:])
    if plan.virtual_stages == 1:
        return leaf_SVLX

    def exchanged(held_1VLX: jax.Array, stage_1: jax.Array) -> jax.Array:
        stage, dealt_1VLX = stage_1[0], jnp.zeros_like(held_1VLX)
        for runs in plan.exchanges():
            sent, turns = np.zeros((2, plan.stages), np.int32)
            for run in runs:
                sent[run.source], turns[run.target] = run.place, run.turn
            pairs = [(run.source, run.target) for run in runs]
            passed_1LX = jax.lax.ppermute(held_1VLX[:, jnp.asarray(sent)[stage]], STAGE, pairs)
            dealt_1VLX = dealt_1VLX.at[:, jnp.asarray(turns)[stage]].set(passed_1LX)
        return dealt_1VLX

    # Not jax.lax.axis_index, which compilers refuse where other mesh axes are theirs to divide.
    return _by_stage(exchanged, leaf_SVLX, jnp.arange(plan.stages))


def _copied(leaf_SX: jax.Array, replicas: int, layout: Layout) -> jax.Array:
    """[S, X] -> [S, P, X]."""
    leaf_SPX = jnp.broadcast_to(leaf_SX[:, None], (len(leaf_SX), replicas, *leaf_SX.shape[1:]))
    return _laid(leaf_SPX, layout, STAGE, _REPLICAS)


def _laid(x: jax.Array, layout: Layout, *mesh_axes: str | tuple[str, ...] | None) -> jax.Array:
    """With its first axes divided over these mesh axes, and the others as the compiler finds best."""
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(mesh_axes))
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*mesh_axes, *free)))
