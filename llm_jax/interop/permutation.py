"""Orders of prediction, from the two masks by which transformers is given them.

Legend: B batch, T length, S the same tokens as keys, P tokens that are asked for.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check
from llm_jax.layers.sequence import SequenceInfo


def permuted(
    placement: SequenceInfo, perm_mask: np.ndarray | None = None, target_mapping: np.ndarray | None = None
) -> SequenceInfo:
    """The placement with the order that `perm_mask` means, and after its tokens those that ask for others.

    Args:
      placement: of tokens [B, T], with their segment ids.
      perm_mask: [B, T, T], 1 where token i may not see token j; None: there is no order.
      target_mapping: [B, P, T], 1 at the one token that a row asks for; None: nothing asks.

    Raises:
      ValueError: for masks that say no such thing, and for targets that would see nothing: transformers then shows them
        all tokens, themselves among them.
    """
    placement = placement if perm_mask is None else _ordered(placement, perm_mask)
    return placement if target_mapping is None else _asking(placement, target_mapping, perm_mask)


def _ordered(placement: SequenceInfo, perm_mask: np.ndarray) -> SequenceInfo:
    """With ranks: 0 for tokens that all see, for others one more than the number of others that they see."""
    real_BT = np.asarray(placement.segment_ids_BT) != 0
    hidden_BTS = _binary("perm_mask", perm_mask, *real_BT.shape) & real_BT[:, :, None] & real_BT[:, None]
    given_BT = ~hidden_BTS.any(axis=1)
    # What a token itself is to itself is no matter of order: as content it always sees itself.
    other_BTS = real_BT[:, :, None] & real_BT[:, None] & ~np.eye(real_BT.shape[1], dtype=bool)
    before_BTS = ~hidden_BTS & other_BTS & ~given_BT[:, None]
    order_BT = np.where(given_BT, 0, 1 + before_BTS.sum(axis=2))
    seen_BTS = (order_BT[:, None] == 0) | (order_BT[:, None] < order_BT[:, :, None])
    wrong = np.flatnonzero(((seen_BTS == hidden_BTS) & other_BTS).any(axis=(1, 2)))
    check(
        not len(wrong),
        f"perm_mask is no order in rows {wrong.tolist()}: a token must see all that come before it in one "
        "order and, but for those that every token sees, no others, or these would reach it through what has seen them",
    )
    return dataclasses.replace(placement, order_BT=jnp.asarray(order_BT, jnp.int32))


def _asking(placement: SequenceInfo, target_mapping: np.ndarray, perm_mask: np.ndarray | None) -> SequenceInfo:
    """With P more tokens, at the places of those that they ask for."""
    real_BT = np.asarray(placement.segment_ids_BT) != 0
    points_BPT = _binary("target_mapping", target_mapping, *real_BT.shape)
    check(
        bool((points_BPT.sum(axis=2) == 1).all() and (points_BPT.sum(axis=1) <= 1).all()),
        "target_mapping is not one-hot: each of its rows must be 1 at one token, and no two at the same",
    )
    at_BP = points_BPT.argmax(axis=2)
    check(
        bool(np.take_along_axis(real_BT, at_BP, axis=1).all()),
        "target_mapping points at padding: point at tokens whose attention_mask is 1",
    )
    if perm_mask is not None:
        _check_targets(np.asarray(placement.order_BT), real_BT, np.asarray(perm_mask) != 0, at_BP)
    whole = jax.tree.map(lambda a: jnp.concatenate([a, jnp.take_along_axis(a, at_BP, axis=1)], axis=1), placement)
    asks = np.arange(whole.positions_BT.shape[1]) >= real_BT.shape[1]
    return whole.replace(targets_BT=jnp.broadcast_to(asks, whole.positions_BT.shape))


def _check_targets(order_BT: np.ndarray, real_BT: np.ndarray, hidden_BTS: np.ndarray, at_BP: np.ndarray) -> None:
    for row, token in ((row, token) for row, tokens in enumerate(at_BP) for token in tokens):
        order = order_BT[row][real_BT[row]]
        check(
            hidden_BTS[row, token, token] or order_BT[row, token] == 0,
            f"perm_mask lets target {token} of row {row} see itself, though it hides it from others: make it 1 there",
        )
        check(
            bool(((order == 0) | (order < order_BT[row, token])).any()),
            f"perm_mask lets the target {token} of row {row} see nothing, and transformers would show it all: let one "
            "token be seen by all",
        )


def _binary(name: str, mask: np.ndarray, batch: int, length: int) -> np.ndarray:
    mask = np.asarray(mask)
    good = mask.ndim == 3 and (len(mask), mask.shape[2]) == (batch, length) and bool(np.isin(mask, (0, 1)).all())
    check(good, f"{name} has shape {mask.shape}: it must be [{batch}, any number, {length}] and hold 0 and 1 only")
    return mask != 0
