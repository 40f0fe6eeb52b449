import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.core.metrics import means
from llm_jax.models import count
from llm_jax.models.families.bert import bert
from llm_jax.models.families.t5 import t5
from llm_jax.models.families.xlnet import xlnet
from llm_jax.models.inputs import Inputs
from llm_jax.models.stack import Execution
from llm_jax.models.transformer import Transformer
from llm_jax.objectives import PermutationLMConfig
from llm_jax.tokenizers import ByteTokenizerConfig
from tests.helpers import packed_rows, tiny

CONFIG = dataclasses.replace(
    xlnet(2, 4, 16, vocab_size=tiny.VOCAB, max_length=64, hidden=24), execution=Execution(unroll=1)
)
MODEL = Transformer(CONFIG)
PARAMS = tiny.parameters(MODEL)
BYTES = ByteTokenizerConfig().build(lambda: (), None, "")


def example(row, rate=1 / 6, seed=0, tokenizer=None):
    examples = PermutationLMConfig(rate=rate).examples(CONFIG, tokenizer, len(row["tokens"]) - 1)
    return examples.row(row, np.random.default_rng(seed))


def batch_of(lengths, padding=0, rate=0.5, seed=0):
    return packed_rows.stacked(PermutationLMConfig(), [example(packed_rows.row(lengths, padding), rate, seed)])


@settings(deadline=None)
@given(packed_rows.LENGTHS, packed_rows.SEEDS, st.floats(0.05, 1.0))
def test_each_query_asks_for_one_token_of_the_text(lengths, seed, rate):
    row = packed_rows.row(lengths, padding=3, unlike=True)
    batch = packed_rows.stacked(PermutationLMConfig(), [example(row, rate, seed)])
    total, targets = sum(lengths), batch.targets_BT[0]
    assert len(targets) == PermutationLMConfig(rate=rate).targets(total + 2)
    sequence = jax.tree.map(lambda x: x[0], batch.inputs.sequence)
    names = ("positions_BT", "segment_ids_BT", "order_BT")
    content, query = (
        {name: getattr(sequence, name)[part] for name in names} for part in (slice(0, total), slice(total + 2, None))
    )
    np.testing.assert_array_equal(batch.inputs.tokens_BT[0, :total], row["tokens"][:total])
    np.testing.assert_array_equal(sequence.targets_BT, np.arange(total + 2 + len(targets)) >= total + 2)
    asked = batch.loss_weights_BT[0] == 1
    assert asked.sum() == max(1, round(rate * total)) and not query["segment_ids_BT"][~asked].any()
    # Tokens differ, so each target has one place.
    at = np.array([np.flatnonzero(row["tokens"] == target)[0] for target in targets[asked]])
    for name, array in query.items():
        np.testing.assert_array_equal(array[asked], content[name][at], err_msg=name)
    # The ranks of predicted tokens are an order, and all others have rank 0.
    np.testing.assert_array_equal(np.sort(content["order_BT"][at]), np.arange(1, asked.sum() + 1))
    assert not np.delete(content["order_BT"], at).any()


def test_shares_and_orders_are_uniform():
    chosen, ranks = np.zeros(50), np.zeros(50)
    for seed in range(2000):  # 100,000 tokens
        order = example(packed_rows.row([50, 1]), 0.2, seed)["order"]
        chosen += order != 0
        ranks += order
    assert chosen.sum() == 2000 * 10
    np.testing.assert_allclose(chosen / 2000, 0.2, atol=0.03)
    # Tokens of the beginning are predicted as often, and as early, as those of the end.
    halves = chosen.reshape(2, 25).sum(axis=1)
    np.testing.assert_allclose(halves / halves.sum(), 0.5, rtol=0.02)
    np.testing.assert_allclose(ranks.reshape(2, 25).sum(axis=1) / halves, 5.5, rtol=0.02)


def test_orders_are_drawn_by_the_generator_alone():
    row = packed_rows.row([9, 30])
    first, again, other = (example(row, seed=seed)["order"] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_boundary_tokens_and_padding_are_not_predicted():
    row = packed_rows.row([10, 10], padding=5)
    row["tokens"][[0, 9, 10, 19]] = [BYTES.bos_id, BYTES.eos_id] * 2
    found = example(row, rate=1.0, tokenizer=BYTES)
    assert found["order"][[0, 9, 10, 19]].tolist() == [0] * 4 and (found["order"] != 0).sum() == 16
    assert (found["target_segment_ids"] != 0).sum() == 16 and len(found["targets"]) == 24
    empty = {name: np.zeros(9, np.int32) for name in row}
    assert not example(empty)["target_segment_ids"].any()


def leaks(batch, read=None):
    """Whether a query of the first row reads the token that it predicts, if the model reads the sequence `read`."""
    sequence = batch.inputs.sequence
    found = packed_rows.influence(MODEL, PARAMS, batch.inputs.replace(sequence=read or sequence))
    segments, positions, asks = (x[0] for x in (sequence.segment_ids_BT, sequence.positions_BT, sequence.targets_BT))
    own = (segments[:, None] == segments) & (positions[:, None] == positions) & ~asks
    queries = asks & (segments != 0)
    assert queries.sum() > 3 and (own[queries].sum(axis=1) == 1).all()
    return (found[own & queries[:, None]] != 0).any()


def test_no_prediction_reads_its_target():
    batch = batch_of([7, 8])
    sequence = batch.inputs.sequence
    assert not leaks(batch)
    assert leaks(batch, sequence.replace(targets_BT=np.zeros_like(sequence.targets_BT)))  # one stream
    assert leaks(batch, sequence.replace(order_BT=np.zeros_like(sequence.order_BT)))  # no order


def test_a_prediction_reads_what_is_given_and_earlier_ones_of_its_document():
    batch = batch_of([7, 8], padding=1, rate=0.6)
    found, sequence = packed_rows.influence(MODEL, PARAMS, batch.inputs) > 0, batch.inputs.sequence
    segments, order, asks = (x[0] for x in (sequence.segment_ids_BT, sequence.order_BT, sequence.targets_BT))
    readable = (segments[:, None] == segments) & ~asks & ((order == 0) | (order < order[:, None]))
    np.testing.assert_array_equal(found[asks], readable[asks])


def test_the_loss_is_that_of_each_document_alone():
    objective = PermutationLMConfig(rate=0.5)
    rows = [example(packed_rows.row(lengths, 17 - sum(lengths)), 0.5, seed=2) for lengths in ([7, 9], [2, 2, 9])]
    batch = packed_rows.stacked(objective, rows)
    loss, metrics = jax.jit(lambda: objective.loss(MODEL, PARAMS, batch))()
    score = jax.jit(lambda inputs: MODEL.apply({"params": PARAMS}, inputs).logits_BTV)
    nats = []
    sequences = jax.tree.map(np.asarray, batch.inputs.sequence)
    for number, row in enumerate(rows):
        for document in range(1, row["segment_ids"].max() + 1):
            own = sequences.segment_ids_BT[number] == document
            sequence = jax.tree.map(lambda x: x[number][own][None], sequences)  # noqa: B023
            log_p = jax.nn.log_softmax(score(Inputs(batch.inputs.tokens_BT[number][own][None], sequence)))[0]
            targets = row["targets"][row["target_segment_ids"] == document]
            nats += [-log_p[len(log_p) - len(targets) + i, target] for i, target in enumerate(targets)]
    assert float(loss) == pytest.approx(float(sum(nats)), rel=1e-5)
    assert means(metrics)["loss"] == pytest.approx(float(np.mean(nats)), rel=1e-5)


def test_the_head_scores_the_query_stream_alone():
    objective, batch = PermutationLMConfig(rate=0.25), batch_of([32, 1], rate=0.25)
    model = Transformer(dataclasses.replace(CONFIG, vocab_size=4096))
    params = tiny.parameters(model)
    flops = jax.jit(lambda batch: objective.loss(model, params, batch)[0]).lower(batch).cost_analysis()["flops"]
    # 8 targets of 4096 x 16 products. With the 32 tokens of the content they would be five times as many.
    assert 8 * 2 * 4096 * 16 < flops < 3 * 8 * 2 * 4096 * 16


def test_flops_are_those_of_both_streams_and_scores_of_one():
    flops = PermutationLMConfig(rate=0.25).training_flops(CONFIG, 32)
    body = 40 * count.forward_flops(dataclasses.replace(CONFIG, head=None), 40)
    assert flops == pytest.approx(3 * (body + 8 * 2 * 16 * tiny.VOCAB) / 32)
    with pytest.raises(ValueError, match="permutation language modelling trains encoders"):
        PermutationLMConfig().training_flops(t5(1, 2, 8, hidden=16), 32)


def test_shapes_of_a_batch_are_known_without_data():
    objective, batch = PermutationLMConfig(rate=0.5), batch_of([5, 4])
    shapes = lambda batch: jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), batch)  # noqa: E731
    assert shapes(objective.abstract_batch(CONFIG, None, 8, 1)) == shapes(batch)


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(ValueError, match=f"objective.rate is {rate}"):
        PermutationLMConfig(rate=rate)


def test_other_models_are_refused():
    PermutationLMConfig().check(CONFIG, 48)
    for other in (bert(1, 2, 8), tiny.tiny_llama(), t5(1, 2, 8, hidden=16)):
        with pytest.raises(ValueError, match=r"mask Permuted\(\) in every block: use a model of `families.xlnet`"):
            PermutationLMConfig().check(other, 16)
    with pytest.raises(ValueError, match="reads 60 tokens and 10 of the query stream; set max_length to at least 70"):
        PermutationLMConfig().check(CONFIG, 60)
    with pytest.raises(ValueError, match="objective.chunks is 3 .* sequences of 8 targets"):
        PermutationLMConfig(chunks=3).check(CONFIG, 48)
