"""The stack of blocks: a stack consists of segments, and a segment is a group of blocks that is repeated.

Parameters of a segment have a leading `layers` axis of its repeats, whether it is scanned or unrolled, so checkpoints
do not depend on the execution.

Legend: B batch, T length, D model width.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax

from llm_jax.core.checks import check, check_one_of, check_positive, check_positive_if_given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.routing_statistics import RoutingAux
from llm_jax.layers.tap import COLLECTION
from llm_jax.models.block import Block, BlockConfig
from llm_jax.sharding import axes
from llm_jax.sharding import pipeline_parallel as pipeline
from llm_jax.sharding.pipeline_schedule import PipelineSchedule

Remat = Literal["none", "full", "dots", "projections"]

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("product"),
    "projections": jax.checkpoint_policies.save_only_these_names("qkv", "context", "ffn"),
}
"""Remat policies: what the backward pass saves of a group of blocks; the rest is recomputed. `none` saves everything,
`full` only the input of the group, `dots` the results of matrix products with weights. `projections` saves the input
projections of a mixer (for attention the rotated queries, keys and values; for latent attention the latent vectors),
its output before the output projection, and the inner products of the ffn. Products between tokens and the steps of an
LSTM are recomputed."""

Aux = dict[str, RoutingAux]
"""`RoutingAux` by the path of a block in the stack's parameters, such as 'segment_0/block_1', with a leading axis for
its layers."""

# Without a loop a step is slightly faster on CPUs, and compilation takes longer in proportion to the depth
# (experiments/LOG.md).
_FEW = 8
"""Maximum number of repeats that are fully unrolled by default."""


@configclass
class Segment:
    """`blocks` in order, the whole group repeated `repeats` times."""

    blocks: tuple[BlockConfig, ...]
    repeats: int
    shared: bool = False
    """Whether all repeats have the same weights (Lan et al. 2020, arXiv:1909.11942, 3.1)."""

    def __post_init__(self):
        check_positive(repeats=self.repeats)
        check(len(self.blocks) > 0, "segment.blocks is empty: a segment needs at least one block")


@configclass
class Execution:
    """Execution options of a stack. They affect speed and memory, not results or parameters."""

    remat: Remat | tuple[Remat, ...] = "none"
    """Remat policy: one for all segments, or one for each."""
    unroll: int | None = None
    """Repeats unrolled per iteration of the scan over layers; with at least the number of repeats there is no loop.
    None: no loop for a segment of few repeats, where a loop is slower on CPUs, and one repeat per iteration
    otherwise."""

    def __post_init__(self):
        check_positive_if_given(unroll=self.unroll)
        for remat in (self.remat,) if isinstance(self.remat, str) else self.remat:
            check_one_of("remat", remat, ("none", *_POLICIES))

    def remat_of(self, segment: int) -> Remat:
        """Remat policy of a segment."""
        return self.remat if isinstance(self.remat, str) else self.remat[segment]

    def turns(self, repeats: int) -> int:
        """Repeats unrolled per iteration of the scan over a segment."""
        if self.unroll is None:
            return repeats if repeats <= _FEW else 1
        return min(self.unroll, repeats)


def in_stages(segments: tuple[Segment, ...], schedule: PipelineSchedule) -> list[bool]:
    """For each segment of a stack, whether it is pipelined. A segment with shared weights is not: its weights cannot be
    divided over stages.

    Raises:
      ValueError: if a segment cannot be divided into stages, or all are too short.
    """
    schedule.check([segment.repeats for segment in segments if not segment.shared])
    return [not segment.shared and schedule.cuts(segment.repeats) for segment in segments]


def unstacked(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The same depth with one segment for each repeat, for `unstack`ed weights. Nothing is sliced from stacked arrays
    at run time: a decoding step reads each weight in place and writes the KV cache of each layer in place."""
    return tuple(Segment(segment.blocks, 1, segment.shared) for segment in segments for _ in range(segment.repeats))


def unstack(parameters: Any, segments: tuple[Segment, ...]) -> Any:
    """The parameters of a stack, converted to those of the stack `unstacked(segments)`."""
    # Slices keep the leading axis, which segments of one repeat have too.
    places = [(index, slice(repeat, repeat + 1)) for index, s in enumerate(segments) for repeat in range(s.repeats)]
    return {
        f"segment_{number}": _repeat(parameters[f"segment_{index}"], segments[index], place)
        for number, (index, place) in enumerate(places)
    }


def _repeat(parameters: Any, segment: Segment, place: int | slice) -> Any:
    """The parameters of one repeat of a segment."""
    return parameters if segment.shared else jax.tree.map(lambda leaf: leaf[place], parameters)


class Stack(nn.Module):
    """x [B, T, D] -> [B, T, D] through all segments."""

    segments: tuple[Segment, ...]
    width: int
    precision: Precision
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, states: tuple | None = None
    ) -> tuple[jax.Array, tuple | None, Aux, jax.Array | None]:
        """Runs the blocks; `states` holds per segment and repeat the states of its blocks. The last array is the input
        of the last segment; None with states."""
        if states is not None:
            return *self._cached(x_BTD, context, states), {}, None
        # Initialisation is never pipelined: parameters are created for whole segments.
        schedule = None if self.is_initializing() else pipeline.schedule()
        cut = in_stages(self.segments, schedule) if schedule else [False] * len(self.segments)
        aux: Aux = {}
        trunk_BTD = x_BTD
        for index, segment in enumerate(self.segments):
            trunk_BTD = x_BTD
            name, remat = f"segment_{index}", self.execution.remat_of(index)
            if cut[index]:
                x_BTD, found = self._pipelined(segment, remat, self.variables["params"][name], x_BTD, context)
            else:
                turns = self.execution.turns(segment.repeats)
                group = scanned(segment, remat, turns, self.is_initializing())
                group = group(segment.blocks, self.width, self.precision, name=name)
                x_BTD, (_, found) = group(x_BTD, context, None)
            aux |= {f"{name}/{block}": one for block, one in found.items()}
        return x_BTD, None, aux, trunk_BTD

    def _pipelined(
        self, segment: Segment, remat: Remat, weights: Any, x_BTD: jax.Array, context: Context
    ) -> tuple[jax.Array, Aux]:
        """Each stage is a shorter segment; remat is applied per stage. Dropout differs between layers and sequences,
        and from that without a pipeline."""

        def stage(weights: Any, bias_RN: Any, key: Any, x_BTD: jax.Array, context: Context) -> tuple:
            part = dataclasses.replace(segment, repeats=len(jax.tree.leaves(weights)[0]))
            group = scanned(part, "none", self.execution.turns(part.repeats), self.is_initializing())
            layers = group(part.blocks, self.width, self.precision, parent=None)
            rngs = None if key is None else {"dropout": key}
            context = dataclasses.replace(context, bias_RN=bias_RN)
            # Losses of sequences return with their sequences; all other statistics are summed over sequences.
            x_BTD, (_, aux) = layers.apply({"params": weights}, x_BTD, context, None, rngs=rngs)
            losses = {block: one.loss_B for block, one in aux.items()}
            return x_BTD, losses, {block: dataclasses.replace(one, loss_B=None) for block, one in aux.items()}

        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        keep = None if remat == "none" else _POLICIES[remat]
        # The bias table has no axis of sequences, so it does not move from stage to stage.
        rows = dataclasses.replace(context, bias_RN=None)
        x_BTD, losses, aux = pipeline.run(stage, weights, context.bias_RN, key, x_BTD, rows, keep)
        return x_BTD, {block: dataclasses.replace(one, loss_B=losses[block]) for block, one in aux.items()}

    def _cached(self, x_BTD: jax.Array, context: Context, states: tuple) -> tuple[jax.Array, tuple]:
        """Unrolls all repeats: a scan over layers would copy the whole cache in each iteration."""
        after = []
        for index, (segment, repeats) in enumerate(zip(self.segments, states, strict=True)):
            group = BlockGroup(segment.blocks, self.width, self.precision, parent=None)
            weights, done = self.variables["params"][f"segment_{index}"], []
            for repeat, state in enumerate(repeats):
                own = {"params": _repeat(weights, segment, repeat)}
                x_BTD, (state, _) = group.apply(own, x_BTD, context, state)
                done.append(state)
            after.append(tuple(done))
        return x_BTD, tuple(after)


class BlockGroup(nn.Module):
    """The blocks of one repeat of a segment."""

    blocks: tuple[BlockConfig, ...]
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, states: tuple | None
    ) -> tuple[jax.Array, tuple[tuple | None, Aux]]:
        after, aux = [], {}
        for index, block in enumerate(self.blocks):
            state, name = states[index] if states else None, f"block_{index}"
            x_BTD, state, found = Block(block, self.width, self.precision, name=name)(x_BTD, context, state)
            after.append(state)
            aux |= {} if found is None else {name: found}
        return x_BTD, (tuple(after) if states else None, aux)


def scanned(segment: Segment, remat: Remat, turns: int, initializing: bool) -> Any:
    """The module class of a segment: `BlockGroup`, scanned over its repeats.

    Args:
      turns: repeats unrolled per iteration of the scan.
      initializing: whether the call creates the parameters.
    """
    group = BlockGroup
    if remat != "none":
        # Inside a loop the compiler cannot merge the recomputation with the forward pass, so no barrier is needed.
        policy = _POLICIES[remat]
        group = nn.remat(group, policy=policy, prevent_cse=turns > 1 or segment.repeats == 1)
    own, common = ({}, "params") if segment.shared else ({"params": 0}, False)
    # Taps of the repeats are stacked, like their parameters.
    own |= {COLLECTION: 0}
    # All repeats have the same context. The type annotations of flax are narrower than the values that it accepts.
    over: dict[str, Any] = {"variable_axes": own, "in_axes": (nn.broadcast, 0)}
    return nn.scan(
        group,
        variable_broadcast=common,
        # Every repeat draws its own parameters, unless they are shared, and its own dropout.
        split_rngs={"params": not segment.shared, "dropout": True},
        length=segment.repeats,
        unroll=turns,
        # The check traces the blocks twice. Parameters that all repeats share cannot be created without it, and a seed
        # gives all others the values that it gave before.
        check_constancy_invariants=initializing,
        # The logical axis that flax puts before those of each parameter.
        metadata_params={nn.PARTITION_NAME: axes.LAYERS},
        **over,
    )
