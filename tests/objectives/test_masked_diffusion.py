import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from llm_jax.core.metrics import means
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.families.bert import bert
from llm_jax.models.inputs import Inputs
from llm_jax.models.transformer import Transformer
from llm_jax.objectives import MaskedDiffusionConfig
from tests.helpers import packed_rows, tiny

OBJECTIVE = MaskedDiffusionConfig()
CONFIG = bert(1, 2, 8, vocab_size=32, max_length=32)
MASK = 31
MODEL = Transformer(CONFIG)
PARAMS = tiny.parameters(MODEL)


def example(row, seed=0):
    return OBJECTIVE.examples(CONFIG, None, len(row["tokens"]) - 1).row(row, np.random.default_rng(seed))


@settings(deadline=None)
@given(packed_rows.LENGTHS, packed_rows.SEEDS)
def test_what_is_read_and_what_is_predicted_are_the_text(lengths, seed):
    row = packed_rows.row(lengths, padding=3)
    batch = packed_rows.stacked(OBJECTIVE, [example(row, seed)])
    read, targets, weights = batch.inputs.tokens_BT[0], batch.targets_BT[0], batch.loss_weights_BT[0]
    masked = weights > 0
    np.testing.assert_array_equal(read == MASK, masked)
    np.testing.assert_array_equal(np.where(masked, targets, read), row["tokens"][:-1])
    for document, length in enumerate(lengths, start=1):
        own = batch.inputs.sequence.segment_ids_BT[0] == document
        count = (masked & own).sum()
        assert 1 <= count <= length
        # The weight is 1 / t, and all weights of a document add up to its tokens.
        np.testing.assert_allclose(weights[masked & own], length / count, rtol=1e-6)
    assert not masked[batch.inputs.sequence.segment_ids_BT[0] == 0].any()


def test_times_are_uniform_and_so_are_the_places_of_masks():
    counts, places = np.zeros(5), np.zeros(4)
    for seed in range(100):
        masked = example(packed_rows.row([4] * 250 + [1]), seed)["loss_weights"].reshape(-1, 4) > 0  # 100,000 tokens
        counts += np.bincount(masked.sum(axis=1), minlength=5)
        places += masked.sum(axis=0)
    np.testing.assert_allclose(counts / counts.sum(), [0, 0.25, 0.25, 0.25, 0.25], atol=0.01)
    np.testing.assert_allclose(places / 25_000, 2.5 / 4, atol=0.01)


def test_masks_are_drawn_by_the_generator_alone():
    row = packed_rows.row([9, 30])
    first, again, other = (example(row, seed)["inputs"] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_a_row_of_padding_has_no_target():
    empty = {name: np.zeros(9, np.int32) for name in ("tokens", "segment_ids", "positions")}
    assert not example(empty)["loss_weights"].any()


def test_no_prediction_reads_its_target():
    row = packed_rows.row([9, 9], unlike=True)
    found = example(row)
    masked = found["loss_weights"] > 0
    assert masked.sum() > 3

    @jax.jit
    def gradient(tokens):
        """d(scores of the masked tokens) / d(embedding table), without the head, which has the table too."""

        def scores(table):
            features = table[tokens][None]
            inputs = Inputs(sequence=packed_rows.stacked(OBJECTIVE, [found]).inputs.sequence, features_BTE=features)
            hidden = MODEL.apply({"params": PARAMS}, inputs, method="hidden").hidden_BTD[0]
            return jnp.sum(jnp.sin(jnp.arange(hidden.size).reshape(hidden.shape)) * hidden * masked[:, None])

        return jnp.abs(jax.grad(scores)(PARAMS["embed"]["table"])).max(axis=-1)

    targets, others = found["tokens"][masked], found["tokens"][~masked]
    read = gradient(found["inputs"])
    assert (read[targets] == 0).all() and (read[others] > 0).all() and read[MASK] > 0
    assert (gradient(found["tokens"])[targets] > 0).all()  # if nothing were masked


def test_documents_are_apart():
    batch = packed_rows.stacked(OBJECTIVE, [example(packed_rows.row([7, 8], padding=2))])
    segments = batch.inputs.sequence.segment_ids_BT[0]
    found = packed_rows.influence(MODEL, PARAMS, batch.inputs) > 0
    np.testing.assert_array_equal(found[segments != 0], (segments[:, None] == segments)[segments != 0])


def test_the_loss_is_that_of_each_document_alone():
    rows = [example(packed_rows.row(lengths, 17 - sum(lengths)), seed=2) for lengths in ([7, 9], [2, 2, 9])]
    loss, metrics = jax.jit(lambda batch: OBJECTIVE.loss(MODEL, PARAMS, batch))(packed_rows.stacked(OBJECTIVE, rows))
    nats, tokens = 0.0, 0
    for row in rows:
        for document in range(1, row["segment_ids"].max() + 1):
            own = row["segment_ids"] == document
            read, text = row["inputs"][own], row["tokens"][own]
            place = SequenceInfo(np.arange(len(text), dtype=np.int32)[None])
            log_p = jax.nn.log_softmax(MODEL.apply({"params": PARAMS}, Inputs(read[None], place)).logits_BTV[0])
            t = (read == MASK).mean()
            nats -= sum(float(log_p[at, text[at]]) for at in np.flatnonzero(read == MASK)) / t
            tokens += len(text)
    assert float(loss) == pytest.approx(nats, rel=1e-5)
    assert means(metrics)["loss"] == pytest.approx(nats / tokens, rel=1e-5)


def test_the_expected_loss_bounds_the_likelihood():
    """The model's likelihood is that of a random order of the tokens, one at a time. The bound is the mean over orders
    of its logarithm, and both are computed from all orders of four tokens."""
    text = np.array([3, 14, 15, 9])
    subsets = [np.array(kept) for kept in itertools.product([False, True], repeat=4)]
    reads = jnp.asarray([np.where(kept, text, MASK) for kept in subsets])
    log_p = np.asarray(jax.nn.log_softmax(jax.jit(lambda x: MODEL.apply({"params": PARAMS}, x).logits_BTV)(reads)))

    def nats(kept, at):
        return -log_p[[tuple(one) for one in subsets].index(tuple(kept)), at, text[at]]

    orders = []
    for order in itertools.permutations(range(4)):
        kept, total = np.zeros(4, bool), 0.0
        for at in order:
            total += nats(kept, at)
            kept[at] = True
        orders.append(total)
    bound, likelihood = np.mean(orders), -np.log(np.mean(np.exp(-np.array(orders))))
    row = packed_rows.row([4] * 1000 + [1]) | {"tokens": np.append(np.tile(text, 1000), 1).astype(np.int32)}
    found, losses = example(row), []
    for read, weights in zip(found["inputs"].reshape(-1, 4), found["loss_weights"].reshape(-1, 4), strict=True):
        losses.append(sum(weights[at] * nats(read != MASK, at) for at in np.flatnonzero(weights)))
    error = np.std(losses) / np.sqrt(len(losses))
    assert abs(np.mean(losses) - bound) < 3 * error < 0.1 * bound
    assert likelihood < bound


def test_shapes_of_a_batch_are_known_without_data():
    batch = packed_rows.stacked(OBJECTIVE, [example(packed_rows.row([5, 4]))])
    shapes = lambda batch: jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), batch)  # noqa: E731
    assert shapes(OBJECTIVE.abstract_batch(CONFIG, None, 8, 1)) == shapes(batch)


def test_decoders_are_refused():
    OBJECTIVE.check(CONFIG, 16)
    with pytest.raises(ValueError, match="MaskedDiffusionConfig requires a bidirectional model"):
        OBJECTIVE.check(tiny.tiny_llama(), 16)
