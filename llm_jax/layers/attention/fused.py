"""Arguments of external attention functions: jax.nn.dot_product_attention and tokamax's take the same ones.

Legend: B batch, T query length, S key length, K key/value heads, N heads, H head size.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from jax.ad_checkpoint import checkpoint_name

from llm_jax.layers.attention.masks import Bidirectional, BidirectionalWindow, Causal
from llm_jax.layers.attention.pairs import Pairs


def attend(
    function: Callable[..., jax.Array], q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs
) -> jax.Array:
    """Attention output [B, N, T, H] of `function`, which takes arrays [B, T, N, H] and the keywords of `arguments`."""
    arrays = (x.swapaxes(1, 2) for x in (q_BNTH, k_BKSH, v_BKSH))
    y_BTNH = function(*arrays, **arguments(q_BNTH.shape[1], pairs))
    return checkpoint_name(y_BTNH.swapaxes(1, 2), "context")


def arguments(heads: int, pairs: Pairs) -> dict[str, Any]:
    """Mask, bias and scale. A causal or windowed mask over whole sequences is passed by keyword, so that the function
    can skip masked blocks; any other mask is an array over all T * S pairs."""
    given = {"scale": pairs.scores.scale, "bias": pairs.bias(heads)}
    if pairs.whole_rows and isinstance(pairs.mask, Bidirectional):
        return given
    if pairs.whole_rows and isinstance(pairs.mask, BidirectionalWindow):
        return given | {"local_window_size": (pairs.mask.reach, pairs.mask.reach)}
    if pairs.whole_rows and isinstance(pairs.mask, Causal):
        # `window` counts the token itself; `local_window_size` counts the tokens to its left and to its right.
        window = None if pairs.mask.window is None else (pairs.mask.window - 1, 0)
        return given | {"is_causal": True, "local_window_size": window}
    return given | {"mask": pairs.allowed()[:, None]}


def tokamax_attention() -> Callable[..., jax.Array]:
    """tokamax.dot_product_attention.

    Raises:
      ValueError: if tokamax is not installed.
    """
    try:
        tokamax = importlib.import_module("tokamax")
    except ImportError as error:
        raise ValueError(
            "kernel is TokamaxKernel and the package tokamax cannot be imported: pip install tokamax (it comes with "
            "llm_jax[gpu] and llm_jax[tpu]), or set kernel to DotProductKernel or ChunkedKernel"
        ) from error
    # tokamax releases up to 0.0.12 parse the program's whole command line as their own flags and fail on unknown ones
    # (github.com/openxla/tokamax, pull request 957). If the flags are marked as parsed, it uses their defaults.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return tokamax.dot_product_attention
