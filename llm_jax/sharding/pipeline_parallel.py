"""Pipeline parallelism: the stages of a stack of layers are on different devices and process different sequences.

The formulation is that of Xu et al. 2021 (arXiv:2105.04663, 3.3). The inputs of all stages are one array with a stage
axis, sharded over the devices. One pipeline step is the same function, mapped along this axis. Passing activations on
is a rotation along it, which becomes a collective permute between neighbours. The backward pass is the derivative of
that loop.

Waiting microbatches are sharded over the stages. They move to the first stage on a second ring, on which finished ones
move back; sequences are never gathered. A group of as many microbatches as stages passes all virtual stages before the
next group enters (Narayanan et al. 2021, arXiv:2104.04473, 2.2), so the output of the last stage is the next input of
the first stage. In the bubble, stages compute waiting sequences, so that all numbers are finite; these results are
overwritten.

Auxiliary outputs of stages are stored for all steps. Those of the bubble are removed after the loop, because the steps
at which a stage processes real sequences are known in advance.

Weights are copied to the replicas before the loop and not inside it, so that gradients are summed over replicas once
after it. The compiler would otherwise sum them for each microbatch.

Legend: Q groups of microbatches, S stages, P replicas of the pipeline, B sequences of a microbatch in a replica,
V virtual stages per stage, L layers of a virtual stage, M microbatches of a group in the order of entry, X any axes.
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
"""(weights of its layers [L, X], inputs of all layers, key, x [B, X], inputs per sequence [B, X]) -> x [B, X],
auxiliary outputs per sequence [L, B, X], auxiliary outputs summed over sequences [L, X]."""


def schedule() -> PipelineSchedule | None:
    """The pipeline schedule of the layout of `partition.activate`; None without one."""
    layout = partition.active()
    return layout.schedule if layout is not None else None


def run(
    stage: Stage, weights: Any, common: Any, key: jax.Array | None, x: jax.Array, rows: Any, keep: Policy | None
) -> tuple[jax.Array, Any, Any]:
    """Runs x [rows, X] through all layers by the schedule of the active layout. It also returns the auxiliary outputs
    of the layers, in order: per sequence [layers, rows, X], and summed over all sequences [layers, X].

    Args:
      stage: runs L layers.
      weights: tree of [layers, X], in the order of the layers.
      common: tree of arrays that every stage reads.
      key: random key; every stage gets a different one at every step, in every replica. None: no random numbers.
      rows: tree of [rows, X] that moves with x from stage to stage.
      keep: remat policy of a step of a stage, whose inputs are always saved; None: all computed values are saved.

    Raises:
      ValueError: if the number of sequences does not divide into microbatches.
    """
    layout = partition.required()
    plan = given(layout.schedule, f"strategy {type(layout.strategy).__name__} has no pipeline: use PipelineParallel")
    replicas = layout.mesh.shape[DATA] * layout.mesh.shape[FSDP]
    # What else the batch is sharded over: with ExpertParallel, sequences of a replica are on several devices.
    others = layout.parts(axes.BATCH) // (replicas * plan.stages)
    plan.check_rows(len(x), replicas * others)
    # Arrays with a stage axis: waiting microbatches, and the weights of each stage.
    waiting = jax.tree.map(lambda leaf: _cut(leaf, plan, replicas, layout), (x, rows))
    weights = jax.tree.map(lambda leaf: _copied(_dealt(leaf, plan), replicas, layout), weights)
    common = jax.tree.map(
        lambda leaf: _copied(jnp.broadcast_to(leaf, (plan.stages, *leaf.shape)), replicas, layout), common
    )
    work = _mapped(stage, plan, keep or _computed)

    def step(carry: tuple[Any, Any], time: jax.Array) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        (x_SPBX, rows), waiting = carry
        keys = None if key is None else jax.random.split(jax.random.fold_in(key, time), (plan.stages, replicas))
        # All stages compute one microbatch each, then pass it on; a finished one makes place for a waiting one.
        x_SPBX, *told = work(jnp.arange(plan.stages), time, weights, common, keys, x_SPBX, rows)
        held = jax.tree.map(_passed_on, (x_SPBX, rows))
        return _entered(held, waiting, time + 1, plan), tuple(told)

    # The first turn of both rings: the last waiting microbatch of the first group enters the first stage.
    first = jax.tree.map(lambda leaf: _passed_on(leaf[0]), waiting)
    waiting = jax.tree.map(lambda leaf, rolled: leaf.at[0].set(rolled), waiting, first)
    (_, (x_QSPBX, _)), (of_rows, sums) = jax.lax.scan(step, (first, waiting), jnp.arange(plan.steps))
    of_rows = jax.tree.map(lambda told: _joined_layers(_worked(told, plan)), of_rows)
    # [Q, V, M, S, P, L, X], summed over groups, microbatches and replicas.
    sums = jax.tree.map(lambda told: _layers(jnp.sum(_worked(told, plan), axis=(0, 2, 4))), sums)
    # Finished microbatches of a group are stored at the index of the next group, those of the last group at the first.
    return _joined(jnp.roll(x_QSPBX, -1, axis=0)), of_rows, sums


def _mapped(stage: Stage, plan: PipelineSchedule, keep: Policy) -> Callable:
    """`stage`, mapped over all stages and replicas; the first arguments are the index of the stage and the step."""

    # Without the checkpoint, the sliced and cast weights of each step would be saved.
    @functools.partial(jax.checkpoint, policy=keep, prevent_cse=False)
    def one(number: jax.Array, time: jax.Array, weights: Any, common: Any, key: Any, x_BX: jax.Array, rows: Any) -> Any:
        # A stage starts as many steps after the first one as its index says, and runs each of its virtual stages for a
        # whole group.
        turn = (time - number) // plan.stages % plan.virtual_stages
        own = jax.tree.map(lambda leaf_VLX: jax.lax.dynamic_index_in_dim(leaf_VLX, turn, keepdims=False), weights)
        with partition.within(STAGE, *_REPLICAS):
            return stage(own, common, key, x_BX, rows)

    # `spmd_axis_name` keeps the mapped axis sharded over these mesh axes where the function constrains its arrays.
    replicas = jax.vmap(one, (None, None, 0, 0, 0, 0, 0), spmd_axis_name=_REPLICAS)
    return jax.vmap(replicas, (0, None, 0, 0, 0, 0, 0), spmd_axis_name=STAGE)


def _computed(primitive: Any, *_: Any, **__: Any) -> bool:
    """Remat policy: saves everything except results of slices, casts and layout changes."""
    return primitive.name not in _MOVES


def _entered(held: Any, waiting: Any, time: jax.Array, plan: PipelineSchedule) -> tuple[Any, Any]:
    """Exchanges the input of the first stage with a waiting microbatch if it has passed all virtual stages."""
    # The steps in which a group passes all virtual stages. In the first of them, as many as there are stages, its
    # microbatches enter and those of the group before leave.
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
    """Sends each part to the next stage, and that of the last stage to the first.

    It is an explicit collective permute, because the compiler does not always convert a rotation of the array into one.
    """
    stages = len(x_SX)
    ring = [(stage, (stage + 1) % stages) for stage in range(stages)]
    return _by_stage(lambda x_1X: jax.lax.ppermute(x_1X, STAGE, ring), x_SX)


def _by_stage(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`function` under shard_map over the stages of [S, X] arrays; it may use collectives."""
    mesh, divided = partition.required().mesh, PartitionSpec(STAGE)
    return jax.shard_map(function, mesh=mesh, in_specs=divided, out_specs=divided, axis_names={STAGE})(*arrays)


def _first(one_SX: jax.Array, other_SX: jax.Array) -> jax.Array:
    """`one` at the first stage, `other` at all others."""
    stages = jnp.arange(len(one_SX)).reshape(-1, *[1] * (one_SX.ndim - 1))
    return jnp.where(stages == 0, one_SX, other_SX)


def _cut(x: jax.Array, plan: PipelineSchedule, replicas: int, layout: Layout) -> jax.Array:
    """[rows, X] -> [Q, S, P, B, X]. No sequence leaves its device: a microbatch consists of sequences of one stage."""
    # Interleaved: of the sequences of a stage, the q-th and every Q-th after it belong to group q.
    x_PSBQX = x.reshape(replicas, plan.stages, -1, plan.groups, *x.shape[1:])
    x_QSPBX = jnp.moveaxis(x_PSBQX, (3, 1, 0, 2), (0, 1, 2, 3))
    return _laid(x_QSPBX, layout, None, STAGE, _REPLICAS)


def _joined(x_QSPBX: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    x_PSBQX = jnp.moveaxis(x_QSPBX, (0, 1, 2, 3), (3, 1, 0, 2))
    return x_PSBQX.reshape(-1, *x_QSPBX.shape[4:])


def _worked(told: jax.Array, plan: PipelineSchedule) -> jax.Array:
    """Auxiliary outputs [steps, S, X] without those of the bubble: [Q, V, M, S, X]."""
    # Stage i starts i steps after the first stage.
    worked = plan.virtual_stages * plan.microbatches
    by_stage = [told[stage : stage + worked, stage] for stage in range(plan.stages)]
    return jnp.stack(by_stage, axis=1).reshape(
        plan.groups, plan.virtual_stages, plan.stages, plan.stages, *told.shape[2:]
    )


def _joined_layers(told_QVMSPLBX: jax.Array) -> jax.Array:
    """Auxiliary outputs with sequences in the order of `_joined` and layers in order: [layers, rows, X]."""
    # The last waiting microbatch enters first.
    told_QVMSPLBX = jnp.flip(told_QVMSPLBX, axis=2)
    told_VSLQMPBX = jnp.moveaxis(told_QVMSPLBX, (1, 3, 5, 0, 2, 4, 6), range(7))
    return jax.vmap(_joined)(_layers(told_VSLQMPBX))


def _layers(told_VSLX: jax.Array) -> jax.Array:
    """[V, S, L, X] -> [layers, X]."""
    return told_VSLX.reshape(-1, *told_VSLX.shape[3:])


def _dealt(leaf: jax.Array, plan: PipelineSchedule) -> jax.Array:
    """[layers, X] -> [S, V, L, X]: in each round every stage runs the layers after those of the previous stage.

    The weights are stored with consecutive layers on one stage, so most must be sent to another stage. The exchange is
    explicit, because the compiler would send them several times.
    """
    # As stored: V consecutive runs of layers on each stage.
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

    # Not jax.lax.axis_index, which the compiler rejects if other mesh axes are automatic.
    return _by_stage(exchanged, leaf_SVLX, jnp.arange(plan.stages))


def _copied(leaf_SX: jax.Array, replicas: int, layout: Layout) -> jax.Array:
    """[S, X] -> [S, P, X]."""
    leaf_SPX = jnp.broadcast_to(leaf_SX[:, None], (len(leaf_SX), replicas, *leaf_SX.shape[1:]))
    return _laid(leaf_SPX, layout, STAGE, _REPLICAS)


def _laid(x: jax.Array, layout: Layout, *mesh_axes: str | tuple[str, ...] | None) -> jax.Array:
    """x with its first axes sharded over these mesh axes; the compiler chooses the sharding of the others."""
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(mesh_axes))
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*mesh_axes, *free)))
