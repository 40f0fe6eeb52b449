"""Prediction orders of XLNet, from `perm_mask` and `target_mapping` of transformers.

Legend: B batch, T length, S the same tokens as keys, P targets.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check
from llm_jax.layers.sequence import SequenceInfo


def permuted(
    sequence: SequenceInfo, perm_mask: np.ndarray | None = None, target_mapping: np.ndarray | None = None
) -> SequenceInfo:
    """The sequence with the prediction order of `perm_mask`, followed by the targets of `target_mapping`.

    Args:
      sequence: tokens [B, T] with their segment ids.
      perm_mask: [B, T, T], 1 where token i may not attend to token j; None: no order.
      target_mapping: [B, P, T], one-hot: 1 at the token that the target predicts; None: no targets.

    Raises:
      ValueError: for masks that define no order, and for targets that attend to nothing: transformers then lets them
        attend to all tokens, their own included.
    """
    sequence = sequence if perm_mask is None else _ordered(sequence, perm_mask)
    return sequence if target_mapping is None else _asking(sequence, target_mapping, perm_mask)


def _ordered(sequence: SequenceInfo, perm_mask: np.ndarray) -> SequenceInfo:
    """Adds ranks: 0 for tokens that all attend to, otherwise 1 + the number of other tokens that a token attends to."""
    real_BT = np.asarray(sequence.segment_ids_BT) != 0
    hidden_BTS = _binary("perm_mask", perm_mask, *real_BT.shape) & real_BT[:, :, None] & real_BT[:, None]
    given_BT = ~hidden_BTS.any(axis=1)
    # The diagonal does not matter: in the content stream a token always attends to itself.
    other_BTS = real_BT[:, :, None] & real_BT[:, None] & ~np.eye(real_BT.shape[1], dtype=bool)
    before_BTS = ~hidden_BTS & other_BTS & ~given_BT[:, None]
    order_BT = np.where(given_BT, 0, 1 + before_BTS.sum(axis=2))
    seen_BTS = (order_BT[:, None] == 0) | (order_BT[:, None] < order_BT[:, :, None])
    wrong = np.flatnonzero(((seen_BTS == hidden_BTS) & other_BTS).any(axis=(1, 2)))
    check(
        not len(wrong),
        f"perm_mask defines no order in sequences {wrong.tolist()}: a token must attend to all tokens of lower rank, "
        "to those that every token attends to, and to no others",
    )
    return dataclasses.replace(sequence, order_BT=jnp.asarray(order_BT, jnp.int32))


def _asking(sequence: SequenceInfo, target_mapping: np.ndarray, perm_mask: np.ndarray | None) -> SequenceInfo:
    """Appends P query-stream tokens at the positions of the tokens that they predict."""
    real_BT = np.asarray(sequence.segment_ids_BT) != 0
    points_BPT = _binary("target_mapping", target_mapping, *real_BT.shape)
    check(
        bool((points_BPT.sum(axis=2) == 1).all() and (points_BPT.sum(axis=1) <= 1).all()),
        "target_mapping is not one-hot: each target must be 1 at one token, and no two at the same",
    )
    at_BP = points_BPT.argmax(axis=2)
    check(
        bool(np.take_along_axis(real_BT, at_BP, axis=1).all()),
        "target_mapping is 1 at padding: targets require tokens whose attention_mask is 1",
    )
    if perm_mask is not None:
        _check_targets(np.asarray(sequence.order_BT), real_BT, np.asarray(perm_mask) != 0, at_BP)
    whole = jax.tree.map(lambda a: jnp.concatenate([a, jnp.take_along_axis(a, at_BP, axis=1)], axis=1), sequence)
    asks = np.arange(whole.positions_BT.shape[1]) >= real_BT.shape[1]
    return whole.replace(targets_BT=jnp.broadcast_to(asks, whole.positions_BT.shape))


def _check_targets(order_BT: np.ndarray, real_BT: np.ndarray, hidden_BTS: np.ndarray, at_BP: np.ndarray) -> None:
    for row, token in ((row, token) for row, tokens in enumerate(at_BP) for token in tokens):
        order = order_BT[row][real_BT[row]]
        check(
            hidden_BTS[row, token, token] or order_BT[row, token] == 0,
            f"perm_mask[{row}, {token}, {token}] is 0: a target must not attend to itself; set it to 1",
        )
        check(
            bool(((order == 0) | (order < order_BT[row, token])).any()),
            f"perm_mask lets target {token} of sequence {row} attend to nothing: transformers would let it attend to "
            "all tokens; unmask one token for all",
        )


def _binary(name: str, mask: np.ndarray, batch: int, length: int) -> np.ndarray:
    mask = np.asarray(mask)
    good = mask.ndim == 3 and (len(mask), mask.shape[2]) == (batch, length) and bool(np.isin(mask, (0, 1)).all())
    check(good, f"{name} has shape {mask.shape}: it must be [{batch}, any number, {length}] and hold 0 and 1 only")
    return mask != 0
