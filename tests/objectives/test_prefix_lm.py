import jax
import numpy as np
import pytest
from hypothesis import given, settings

from llm_jax.core.metrics import means
from llm_jax.layers.attention.masks import Bidirectional, PrefixCausal
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.families.bert import bert
from llm_jax.models.inputs import Inputs
from llm_jax.models.transformer import Transformer
from llm_jax.objectives import PrefixLMConfig
from tests.helpers import packed_rows, tiny

OBJECTIVE = PrefixLMConfig()
CONFIG = tiny.tiny_llama().with_mask(PrefixCausal())
MODEL = Transformer(CONFIG)
PARAMS = tiny.parameters(MODEL)


def example(row, seed=0):
    examples = OBJECTIVE.examples(CONFIG, None, len(row["tokens"]) - 1)
    return examples.row(row, np.random.default_rng(seed))


def first_batch(lengths, padding=0, seed=1):
    return packed_rows.stacked(OBJECTIVE, [example(packed_rows.row(lengths, padding), seed)])


@settings(deadline=None)
@given(packed_rows.LENGTHS, packed_rows.SEEDS)
def test_prefix_and_targets_are_the_text(lengths, seed):
    row = packed_rows.row(lengths, padding=3)
    batch = packed_rows.stacked(OBJECTIVE, [example(row, seed)])
    sequence, weights = batch.inputs.sequence, batch.loss_weights_BT[0]
    assert set(weights) <= {0.0, 1.0} and weights.dtype == np.float32
    for document, length in enumerate(lengths, start=1):
        own = sequence.segment_ids_BT[0] == document
        prefix = batch.inputs.tokens_BT[0][own & sequence.prefix_BT[0]]
        target = batch.targets_BT[0][own & (weights == 1)]
        text = row["tokens"][row["segment_ids"] == document]
        np.testing.assert_array_equal(np.concatenate([prefix, target]), text)
        assert len(prefix) >= 1 and (len(target) >= 1 or length == 1)
        # A prefix is the beginning of its document.
        assert (sequence.positions_BT[0][own & sequence.prefix_BT[0]] == np.arange(len(prefix))).all()
    assert not weights[sequence.segment_ids_BT[0] == 0].any()


def test_every_split_is_as_likely():
    row = packed_rows.row([5] * 200)
    counts = np.zeros(6)
    for seed in range(200):  # 200,000 tokens
        counts += np.bincount(example(row, seed)["prefix"].reshape(-1, 5).sum(axis=1), minlength=6)
    np.testing.assert_allclose(counts / counts.sum(), [0, 0.25, 0.25, 0.25, 0.25, 0], atol=0.01)


def test_splits_are_drawn_by_the_generator_alone():
    row = packed_rows.row([9, 30])
    first, again, other = (example(row, seed)["prefix"] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def leaks(config, batch):
    """Whether a prediction of the batch's first row reads its target."""
    model = Transformer(config)
    found = packed_rows.influence(model, PARAMS, batch.inputs)
    (predicting,) = np.nonzero(batch.loss_weights_BT[0][:-1])
    assert len(predicting) > 3
    return (found[predicting, predicting + 1] != 0).any()


def test_no_prediction_reads_its_target():
    batch = first_batch([7, 8])
    assert not leaks(CONFIG, batch)
    assert leaks(CONFIG.with_mask(Bidirectional()), without_prefix(batch))
    # A prefix that is one token too long.
    sequence = batch.inputs.sequence
    longer = sequence.prefix_BT.copy()
    longer[:, 1:] |= sequence.prefix_BT[:, :-1]
    assert leaks(CONFIG, batch.replace(inputs=batch.inputs.replace(sequence=sequence.replace(prefix_BT=longer))))


def without_prefix(batch):
    return batch.replace(inputs=batch.inputs.replace(sequence=batch.inputs.sequence.replace(prefix_BT=None)))


def test_the_prefix_is_read_in_both_directions_and_documents_are_apart():
    batch = first_batch([7, 8], padding=1)
    found, sequence = packed_rows.influence(MODEL, PARAMS, batch.inputs) > 0, batch.inputs.sequence
    segments, prefix = sequence.segment_ids_BT[0], sequence.prefix_BT[0]
    assert prefix[segments == 1].sum() > 1 and prefix[segments == 2].sum() > 1
    same = segments[:, None] == segments
    np.testing.assert_array_equal(found, same & (np.tri(len(segments), dtype=bool) | prefix))


def test_the_loss_is_that_of_each_document_alone():
    rows = [example(packed_rows.row(lengths, 17 - sum(lengths)), seed=2) for lengths in ([7, 8], [1, 2, 9])]
    batch = packed_rows.stacked(OBJECTIVE, rows)
    loss, metrics = jax.jit(lambda: OBJECTIVE.loss(MODEL, PARAMS, batch))()
    score = jax.jit(lambda tokens, place: MODEL.apply({"params": PARAMS}, Inputs(tokens, place)).logits_BTV)
    nats = []
    for row in rows:
        for document in range(1, row["segment_ids"].max() + 1):
            own = row["segment_ids"] == document
            tokens, prefix = (row[name][own][None] for name in ("tokens", "prefix"))
            place = SequenceInfo(np.arange(tokens.shape[1])[None], prefix_BT=prefix)
            log_p = np.asarray(jax.nn.log_softmax(score(tokens, place)))
            nats += [-log_p[0, at - 1, tokens[0, at]] for at in range(prefix.sum(), tokens.shape[1])]
    assert float(loss) == pytest.approx(sum(nats), rel=1e-5)
    assert means(metrics)["loss"] == pytest.approx(np.mean(nats), rel=1e-5)


def test_shapes_of_a_batch_are_known_without_data():
    batch = first_batch([5, 4])
    shapes = lambda batch: jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), batch)  # noqa: E731
    assert shapes(OBJECTIVE.abstract_batch(CONFIG, None, 8, 1)) == shapes(batch)


def test_models_without_the_mask_are_refused():
    OBJECTIVE.check(CONFIG, 16)
    with pytest.raises(ValueError, match=r"PrefixLMConfig requires the mask PrefixCausal\(\).*with_mask"):
        OBJECTIVE.check(tiny.tiny_llama(), 16)
    with pytest.raises(ValueError, match="PrefixLMConfig requires a causal model"):
        OBJECTIVE.check(bert(1, 2, 8), 16)
