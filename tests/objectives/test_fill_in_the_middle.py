import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.core.metrics import means
from llm_jax.data.built_documents import BuiltDocuments
from llm_jax.data.cache import TokenDocuments
from llm_jax.data.packing import PackedConfig
from llm_jax.layers.attention.masks import Bidirectional
from llm_jax.models.families.bert import bert
from llm_jax.models.transformer import Transformer
from llm_jax.objectives import FillInTheMiddleConfig
from llm_jax.tokenizers import ByteTokenizerConfig
from tests.helpers import packed_rows, tiny

CONFIG = tiny.tiny_llama()
PRE, SUF, MID = 31, 30, 29
MODEL = Transformer(CONFIG)
PARAMS = tiny.parameters(MODEL)
BYTES = ByteTokenizerConfig().build(lambda: (), None, "")


def reordered(tokens, spm, seed=0, tokenizer=None, model=CONFIG):
    objective = FillInTheMiddleConfig(rate=1.0, spm=spm)
    examples = objective.examples(model, tokenizer, 16)
    return examples.document(np.asarray(tokens, np.int32), 0.5, np.random.default_rng(seed))["tokens"]


def parts(tokens, pre=PRE, suf=SUF, mid=MID):
    """(what stands between <PRE> and <SUF>, <SUF> and <MID>, after <MID>), without <PRE> at the beginning."""
    tokens = list(tokens)
    assert tokens[0] == pre and tokens.count(pre) == tokens.count(suf) == tokens.count(mid) == 1
    second, third = tokens.index(suf), tokens.index(mid)
    return tokens[1:second], tokens[second + 1 : third], tokens[third + 1 :]


@given(st.lists(st.integers(0, 28), min_size=3, max_size=30), packed_rows.SEEDS, st.booleans())
def test_the_parts_are_the_text(text, seed, spm):
    found = reordered(text, float(spm), seed)
    assert found.dtype == np.int32 and len(found) == len(text) + 3
    prefix, suffix, middle = parts(found)
    if spm:
        assert prefix == [] and middle + suffix == text
    else:
        assert prefix + middle + suffix == text


def test_boundary_tokens_stay_where_they_are():
    text = [BYTES.bos_id, 5, 6, 7, BYTES.eos_id]
    model = bert(1, 2, 8, vocab_size=BYTES.vocab_size + 3)
    for seed in range(30):
        for spm in (0.0, 1.0):
            found = reordered(text, spm, seed, BYTES, model)
            assert found[0] == BYTES.bos_id and found[-1] == BYTES.eos_id
            prefix, suffix, middle = parts(found[1:-1], *range(BYTES.vocab_size + 2, BYTES.vocab_size - 1, -1))
            assert (middle + suffix if spm else prefix + middle + suffix) == [5, 6, 7]
    # Without bos and eos, as documents may be, all tokens are text.
    assert {reordered([5, 6, 7], 0.0, seed, BYTES, model)[1] for seed in range(30)} > {5}


def documents(count, length, words=20):
    tokens = np.random.default_rng(0).integers(0, words, count * length).astype(np.uint16)
    return TokenDocuments(tokens, np.arange(count + 1) * length, count * length, "")


def test_shares_and_cuts_are_those_of_the_config():
    count, length = 25_000, 4  # 100,000 tokens
    examples = FillInTheMiddleConfig(rate=0.7, spm=0.3).examples(CONFIG, None, 16)
    built = BuiltDocuments(documents(count, length), examples, seed=0)
    changed = np.flatnonzero(built.lengths == length + 3)
    np.testing.assert_allclose(len(changed) / count, 0.7, atol=0.01)
    orders, cuts = np.zeros(2), np.zeros((length + 1, length + 1))
    for index in changed:
        tokens = built.read(*np.array([[index], [0], [length + 3]]), epoch=0)["tokens"]
        at = [int(np.flatnonzero(tokens == one)[0]) for one in (SUF, MID)]
        orders += [at[0] == 1, at[0] != 1]
        if at[0] != 1:  # PSM with a prefix
            cuts[at[0] - 1, length - (at[1] - at[0] - 1)] += 1
    # A PSM without a prefix looks like SPM: of the 5 x 5 pairs of cuts 9 have a 0.
    empty = 9 / 25
    np.testing.assert_allclose(orders / len(changed), [0.3 + 0.7 * empty, 0.7 * (1 - empty)], atol=0.01)
    # Two cuts, each uniform from 0 to the length: equal pairs are half as likely as others.
    expected = np.triu(np.full((5, 5), 2.0)) - np.eye(5)
    expected[0] = 0
    np.testing.assert_allclose(cuts / cuts.sum(), expected / expected.sum(), atol=0.01)


def test_lengths_and_what_is_reordered_are_the_same_in_all_epochs_and_cuts_are_not():
    examples = FillInTheMiddleConfig().examples(CONFIG, None, 16)
    built = BuiltDocuments(documents(50, 9), examples, seed=0)
    whole = np.arange(50), np.zeros(50, int), built.lengths
    first, again, other = (built.read(*whole, epoch=epoch)["tokens"] for epoch in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    assert (np.sort(first) == np.sort(other)).all()


def test_short_documents_and_rate_0_change_nothing():
    examples = FillInTheMiddleConfig(rate=1.0).examples(CONFIG, None, 16)
    for length in (0, 1, 2):
        tokens = np.arange(length, dtype=np.int32)
        assert examples.document(tokens, 0.0, np.random.default_rng(0))["tokens"].tolist() == tokens.tolist()
        assert examples.lengths(np.array([length]), np.array([0.0])).tolist() == [length]
    never = FillInTheMiddleConfig(rate=0.0).examples(CONFIG, None, 16)
    built = BuiltDocuments(documents(50, 9), never, seed=0)
    assert built.total == 450 and (built.read(np.array([3]), np.array([0]), np.array([9]), 0)["tokens"] < 20).all()


def packed(length=15, count=4):
    objective = FillInTheMiddleConfig(rate=1.0)
    built = BuiltDocuments(documents(20, 6), objective.examples(CONFIG, None, length), seed=0)
    rows = PackedConfig().train(built, length, seed=0)
    return objective, objective.batch({name: np.stack([rows[i][name] for i in range(count)]) for name in rows[0]})


def test_the_loss_is_that_of_next_tokens_on_packed_rows():
    objective, batch = packed()
    assert (batch.targets_BT == MID).any() and batch.inputs.sequence.segment_ids_BT.max() > 1
    loss, metrics = jax.jit(lambda: objective.loss(MODEL, PARAMS, batch))()
    logits = MODEL.apply({"params": PARAMS}, batch.inputs).logits_BTV
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch.targets_BT[..., None], axis=-1)[..., 0]
    counted = batch.loss_weights_BT == 1
    # All tokens are predicted but the first of each document of a row.
    same_document = np.diff(batch.inputs.sequence.segment_ids_BT) == 0
    np.testing.assert_array_equal(counted[:, :-1], same_document)
    assert float(loss) == pytest.approx(nats[counted].sum(), rel=1e-5)
    assert means(metrics)["loss"] == pytest.approx(nats[counted].mean(), rel=1e-5)


@pytest.mark.parametrize("spm", [0.0, 1.0])
def test_no_prediction_reads_its_target(spm):
    text = np.random.default_rng(0).permutation(12)
    tokens = reordered(text, spm, seed=2)
    row = packed_rows.row([len(tokens)]) | {"tokens": tokens}
    inputs = packed_rows.stacked(FillInTheMiddleConfig(), [row]).inputs
    at = np.arange(len(tokens) - 2)

    def leaks(config):
        return (packed_rows.influence(Transformer(config), PARAMS, inputs)[at, at + 1] != 0).any()

    assert not leaks(CONFIG) and leaks(CONFIG.with_mask(Bidirectional()))
    # Tokens that differ stand in the row once: what is predicted has not been read before.
    assert len(set(tokens.tolist())) == len(tokens)


def test_a_vocabulary_without_room_for_the_sentinels_is_refused():
    model = bert(1, 2, 8, vocab_size=BYTES.vocab_size + 2)
    with pytest.raises(ValueError, match="none named <PRE>, <SUF>, <MID>, and model.vocab_size is 261"):
        FillInTheMiddleConfig().examples(model, BYTES, 16)


@pytest.mark.parametrize("fields", [{"rate": 1.1}, {"spm": -0.5}])
def test_shares_that_are_none_are_refused(fields):
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        FillInTheMiddleConfig(**fields)


def test_encoders_are_refused():
    FillInTheMiddleConfig().check(CONFIG, 16)
    with pytest.raises(ValueError, match="FillInTheMiddleConfig requires a causal model"):
        FillInTheMiddleConfig().check(bert(1, 2, 8), 16)
