"""Linear recurrences of a decaying matrix state with rank-one updates, in interchangeable forms.

    S_t = a_t S_(t-1) + k_t v_t^T,    y_t = S_t^T q_t

with one number a_t in (0, 1] per head and token. Unrolled, y = (q k^T * L) v with L_ts = a_t a_(t-1) ... a_(s+1):
linear attention whose scores decay. With a constant a it is the retention of Sun et al. 2023 (arXiv:2307.08621, 2.1).
With an a that depends on the token it is the state space dual of Dao and Gu 2024 (arXiv:2405.21060, 3).

Legend: B batch, T length, N heads, K key heads, G heads per key head, N = K * G, H key size, P value size, C chunks,
Q and S positions in a chunk.
"""

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_positive, given
from llm_jax.core.configclass import configclass
from llm_jax.layers.recurrent.document_starts import Documents, documents
from llm_jax.layers.sequence import SequenceInfo


@flax.struct.dataclass
class RecurrentState:
    """State of a layer between calls.

    Attributes:
      matrix_BNHP: S after the last real token; float32 in every precision, because it sums over thousands of tokens.
      document_B: int32, the segment id of that token; 0 if there was none.
    """

    matrix_BNHP: jax.Array
    document_B: jax.Array

    @staticmethod
    def empty(batch: int, heads: int, key_size: int, value_size: int) -> "RecurrentState":
        """The state before the first token."""
        matrix_BNHP = jnp.zeros((batch, heads, key_size, value_size), jnp.float32)
        return RecurrentState(matrix_BNHP, jnp.zeros(batch, jnp.int32))


@configclass
class ChunkwiseForm:
    """Scores within chunks and a recurrent state between chunks. It consists of matrix products; cost and memory are
    linear in the length (Sun et al. 2023, eq. 7; Dao and Gu 2024, 6)."""

    chunk: int = 256

    def __post_init__(self):
        check_positive(chunk=self.chunk)

    def run(
        self,
        q_BKTH: jax.Array,
        k_BKTH: jax.Array,
        v_BNTP: jax.Array,
        log_BNT: jax.Array,
        row: Documents,
        state_BNHP: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Output [B, N, T, P] and the state after the last token, float32; the state is None if `state_BNHP` is.

        Args:
          log_BNT: float32, logarithm of the decay, at most 0. Its batch size and that of `row` may be 1.
          row: document starts and padding.
          state_BNHP: float32 state of the document that continues; None: no document continues.
        """
        length = v_BNTP.shape[2]
        if length == 1 and state_BNHP is not None:
            return RecurrentForm().run(q_BKTH, k_BKTH, v_BNTP, log_BNT, row, state_BNHP)
        return _chunkwise(min(self.chunk, length), q_BKTH, k_BKTH, v_BNTP, log_BNT, row, state_BNHP)

    def flops(self, length: int, key_heads: int, heads: int, key_size: int, value_size: int) -> float:
        """Forward FLOPs per token of a sequence of `length` tokens; only allowed scores count."""
        chunk = min(self.chunk, length)
        # A token reads (chunk + 1) / 2 tokens of its chunk on average, at 2 FLOPs a multiply-add. Scores are computed
        # once per key head.
        within = (chunk + 1) * (key_heads * key_size + heads * value_size)
        # Reading the state and adding to it, for each head.
        return within + (4 * heads * key_size * value_size if length > chunk else 0)


@configclass
class ParallelForm:
    """All scores at once, as in attention: memory and work grow with T^2 (Sun et al. 2023, eq. 5)."""

    def run(
        self,
        q_BKTH: jax.Array,
        k_BKTH: jax.Array,
        v_BNTP: jax.Array,
        log_BNT: jax.Array,
        row: Documents,
        state_BNHP: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """As `ChunkwiseForm.run`."""
        return ChunkwiseForm(v_BNTP.shape[2]).run(q_BKTH, k_BKTH, v_BNTP, log_BNT, row, state_BNHP)

    def flops(self, length: int, key_heads: int, heads: int, key_size: int, value_size: int) -> float:
        """As `ChunkwiseForm.flops`."""
        return ChunkwiseForm(length).flops(length, key_heads, heads, key_size, value_size)


@configclass
class RecurrentForm:
    """Token by token, in float32 (Sun et al. 2023, eq. 6). Its backward pass saves a state for each token."""

    def run(
        self,
        q_BKTH: jax.Array,
        k_BKTH: jax.Array,
        v_BNTP: jax.Array,
        log_BNT: jax.Array,
        row: Documents,
        state_BNHP: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """As `ChunkwiseForm.run`."""
        groups, (batch, heads, _, value_size) = v_BNTP.shape[1] // q_BKTH.shape[1], v_BNTP.shape
        real_B1T = row.real_BT[:, None]
        # A document's first token forgets the state before it; padding has decay 1 and a zero key, which leave the
        # state unchanged.
        decay_BNT = jnp.where(row.starts_BT[:, None], 0.0, jnp.where(real_B1T, jnp.exp(log_BNT), 1.0))
        decay_BNT = jnp.broadcast_to(decay_BNT, v_BNTP.shape[:3])
        k_BKTH = jnp.where(real_B1T[..., None], k_BKTH, 0)
        shape = (batch, heads, q_BKTH.shape[-1], value_size)
        start_BNHP = jnp.zeros(shape, jnp.float32) if state_BNHP is None else state_BNHP

        def step(state_BNHP, token):
            q_BKH, k_BKH, v_BNP, decay_BN = (array.astype(jnp.float32) for array in token)
            q_BNH, k_BNH = (jnp.repeat(array, groups, axis=1) for array in (q_BKH, k_BKH))
            state_BNHP = decay_BN[..., None, None] * state_BNHP + k_BNH[..., None] * v_BNP[:, :, None]
            return state_BNHP, jnp.einsum("BNH,BNHP->BNP", q_BNH, state_BNHP)

        tokens = tuple(jnp.moveaxis(array, 2, 0) for array in (q_BKTH, k_BKTH, v_BNTP, decay_BNT))
        end_BNHP, y_TBNP = jax.lax.scan(step, start_BNHP, tokens)
        return jnp.moveaxis(y_TBNP, 0, 2), None if state_BNHP is None else end_BNHP

    def flops(self, length: int, key_heads: int, heads: int, key_size: int, value_size: int) -> float:
        """As `ChunkwiseForm.flops`."""
        return 4 * heads * key_size * value_size


Form = ChunkwiseForm | ParallelForm | RecurrentForm


def recur(
    form: Form,
    q_BKTH: jax.Array,
    k_BKTH: jax.Array,
    v_BNTP: jax.Array,
    log_BNT: jax.Array,
    sequence: SequenceInfo,
    memory: RecurrentState | None = None,
) -> tuple[jax.Array, RecurrentState | None]:
    """Output [B, N, T, P], float32, and the state after the last real token; the state is None if `memory` is.

    A document begins with a zero matrix. Padding neither decays it nor adds to it.

    Args:
      log_BNT: float32, logarithm of the decay of each token, at most 0; its batch may be 1.
    """
    if memory is None:
        # Unpacked sequences all have the same decays and masks, so these are computed for one sequence.
        row = sequence if sequence.segment_ids_BT is not None else SequenceInfo(sequence.positions_BT[:1])
        return form.run(q_BKTH, k_BKTH, v_BNTP, log_BNT, documents(row))[0], None
    found = documents(sequence, memory.document_B)
    y_BNTP, matrix_BNHP = form.run(q_BKTH, k_BKTH, v_BNTP, log_BNT, found, memory.matrix_BNHP)
    return y_BNTP, RecurrentState(given(matrix_BNHP, "the form returned no state"), found.last_B)


def _chunkwise(chunk, q_BKTH, k_BKTH, v_BNTP, log_BNT, row, state_BNHP):
    """`ChunkwiseForm.run`. All chunks are computed in parallel; only the states are sequential."""
    batch, heads, length, value_size = v_BNTP.shape
    key_heads = q_BKTH.shape[1]
    split = lambda x: x.reshape(x.shape[0], key_heads, heads // key_heads, *x.shape[2:])  # noqa: E731
    real_B1T = row.real_BT[:, None]
    k_BKTH = jnp.where(real_B1T[..., None], k_BKTH, 0)
    log_BNT = jnp.where(real_B1T, log_BNT, 0.0)
    q_BKCQH, k_BKCSH = _chunks(q_BKTH, 2, chunk), _chunks(k_BKTH, 2, chunk)
    v_BKGCSP, log_BKGCS = split(_chunks(v_BNTP, 2, chunk)), split(_chunks(log_BNT, 2, chunk))
    # Padding belongs to the document before it. Document 0 is that of the initial state.
    number_BCS = _chunks(jnp.cumsum(row.starts_BT, axis=1, dtype=jnp.int32), 1, chunk, mode="edge")
    # The four steps of the state space dual algorithm (Dao and Gu 2024, section 6, listing 1). Step 1, the diagonal
    # blocks: outputs from tokens of the same chunk. Steps 2 to 4, the blocks below them, are in `_across`.
    total_BKGCS = _totals(log_BKGCS, number_BCS)
    y_BKGCQP = _within(q_BKCQH, k_BKCSH, v_BKGCSP, total_BKGCS, number_BCS)
    if number_BCS.shape[1] > 1 or state_BNHP is not None:
        shape = (batch, heads, q_BKTH.shape[-1], value_size)
        start_BKGHP = split(jnp.zeros(shape, jnp.float32) if state_BNHP is None else state_BNHP)
        y_before_BKGCQP, end_BKGHP = _across(q_BKCQH, k_BKCSH, v_BKGCSP, total_BKGCS, number_BCS, start_BKGHP)
        y_BKGCQP += y_before_BKGCQP
        state_BNHP = None if state_BNHP is None else end_BKGHP.reshape(state_BNHP.shape)
    return y_BKGCQP.reshape(batch, heads, -1, value_size)[:, :, :length], state_BNHP


def _allowed(number_BCS):
    """Which tokens of its chunk a token reads: those of its document up to itself, boolean [B, C, Q, S]."""
    indices = jnp.arange(number_BCS.shape[-1])
    return (number_BCS[..., :, None] == number_BCS[..., None, :]) & (indices[:, None] >= indices)


@jax.checkpoint
def _totals(log_BKGCS, number_BCS):
    """Sums of the log decays up to each token of a chunk, within its document.

    It is a product with the mask, not a cumulative sum: differences of cumulative sums would include rounding errors of
    earlier documents and send gradients to them.
    """
    batch = max(log_BKGCS.shape[0], number_BCS.shape[0])
    allowed_BCQS = _allowed(number_BCS).astype(log_BKGCS.dtype)
    allowed_BCQS = jnp.broadcast_to(allowed_BCQS, (batch, *allowed_BCQS.shape[1:]))
    log_BKGCS = jnp.broadcast_to(log_BKGCS, (batch, *log_BKGCS.shape[1:]))
    return jnp.einsum("BCQS,BKGCS->BKGCQ", allowed_BCQS, log_BKGCS, precision=jax.lax.Precision.HIGHEST)


# The scores of a chunk are recomputed in the backward pass: saved, they would dominate the memory of a layer.
@jax.checkpoint
def _within(q_BKCQH, k_BKCSH, v_BKGCSP, total_BKGCS, number_BCS):
    """Contribution to the output from tokens of the same chunk."""
    allowed_BCQS = _allowed(number_BCS)
    # log L_ts, the sum of the logarithms after s up to t. It is masked before the exponential, which could overflow for
    # later tokens and give NaN gradients.
    log_BKGCQS = jnp.where(allowed_BCQS[:, None, None], total_BKGCS[..., :, None] - total_BKGCS[..., None, :], -jnp.inf)
    scores_BKCQS = jnp.einsum("BKCQH,BKCSH->BKCQS", q_BKCQH, k_BKCSH, preferred_element_type=jnp.float32)
    # Broadcast by a product with ones, so that the gradient's sum over the heads of a group is a product too. As a sum
    # over an inner axis it would take most of the backward pass on CPUs.
    ones_G, exact = jnp.ones(log_BKGCQS.shape[2]), jax.lax.Precision.HIGHEST
    scores_BKGCQS = jnp.einsum("BKCQS,G->BKGCQS", scores_BKCQS, ones_G, precision=exact)
    weights_BKGCQS = (scores_BKGCQS * jnp.exp(log_BKGCQS)).astype(v_BKGCSP.dtype)
    return jnp.einsum("BKGCQS,BKGCSP->BKGCQP", weights_BKGCQS, v_BKGCSP, preferred_element_type=jnp.float32)


def _across(q_BKCQH, k_BKCSH, v_BKGCSP, total_BKGCS, number_BCS, start_BKGHP):
    """Contribution to the output from earlier chunks, and the state after the last chunk."""
    last_BC = number_BCS[..., -1]
    before_BC = jnp.pad(last_BC[:, :-1], ((0, 0), (1, 0)))
    # Only the last document of a chunk is added to the state. Only tokens of the document that continues from the
    # previous chunk read the state.
    adds, reads = number_BCS == last_BC[..., None], number_BCS == before_BC[..., None]
    # Decay from each token to the end of its chunk; below, `kept` is the decay of a whole chunk, 0 if a new document
    # began in it.
    left_BKGCS = jnp.exp(jnp.where(adds[:, None, None], total_BKGCS[..., -1:] - total_BKGCS, -jnp.inf))
    # Step 2: what each chunk adds to the state.
    added_CBKGHP = jnp.einsum(
        "BKCSH,BKGCSP->CBKGHP",
        k_BKCSH,
        (v_BKGCSP * left_BKGCS[..., None]).astype(v_BKGCSP.dtype),
        preferred_element_type=jnp.float32,
    )
    kept_BKGC = jnp.where((last_BC == before_BC)[:, None, None], jnp.exp(total_BKGCS[..., -1]), 0.0)

    # Step 3: the recurrence over the states of chunks.
    def step(state_BKGHP, chunk):
        added_BKGHP, kept_BKG = chunk
        return kept_BKG[..., None, None] * state_BKGHP + added_BKGHP, state_BKGHP

    # The state before each chunk, and the one after the last.
    end_BKGHP, states_CBKGHP = jax.lax.scan(step, start_BKGHP, (added_CBKGHP, jnp.moveaxis(kept_BKGC, -1, 0)))
    # Step 4: outputs from the state before each chunk.
    states_CBKGHP = states_CBKGHP.astype(q_BKCQH.dtype)
    y_BKGCQP = jnp.einsum("BKCQH,CBKGHP->BKGCQP", q_BKCQH, states_CBKGHP, preferred_element_type=jnp.float32)
    decay_BKGCQ = jnp.exp(jnp.where(reads[:, None, None], total_BKGCS, -jnp.inf))
    return y_BKGCQP * decay_BKGCQ[..., None], end_BKGHP


def _chunks(x: jax.Array, axis: int, chunk: int, mode: str = "constant") -> jax.Array:
    """x padded along `axis` and split into chunks: [..., T, ...] -> [..., C, Q, ...]."""
    missing = -x.shape[axis] % chunk
    x = jnp.pad(x, [(0, missing if other == axis else 0) for other in range(x.ndim)], mode=mode)
    return x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :])
