import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm_jax.core.metrics import means
from llm_jax.models import count
from llm_jax.models.build import build
from llm_jax.models.families.bart import bart
from llm_jax.objectives import DenoisingConfig, special_tokens
from llm_jax.tokenizers import ByteTokenizerConfig
from tests.helpers import tiny

VOCAB = 2000
MASK, STOP = VOCAB - 1, 7
MODEL = bart(1, 2, 8, vocab_size=VOCAB, max_length=1000)
PLAIN = {"infilled": 0.0, "permuted": "nothing"}


def row(length, real=None, seed=0, cuts=()):
    """Different tokens from 10 to 1009, documents that begin at `cuts`, and padding after `real`."""
    real = length + 1 if real is None else real
    tokens = np.random.default_rng(seed).permutation(1000)[: length + 1].astype(np.int32) + 10
    segments = np.where(np.arange(length + 1) < real, 1 + np.searchsorted(cuts, np.arange(length + 1), "right"), 0)
    return {"tokens": tokens, "segment_ids": segments.astype(np.int32), "positions": np.zeros(length + 1, np.int32)}


examples = functools.cache(lambda config, length: config.examples(MODEL, None, length))


def example(config, given, seed=0):
    length = len(given["tokens"]) - 1
    found = examples(config, length).row(given, np.random.default_rng(seed))
    source, target = (
        found[name][found[segments] == 1]
        for name, segments in (("encoder_tokens", "encoder_segment_ids"), ("targets", "target_segment_ids"))
    )
    assert (len(found["encoder_tokens"]), len(found["targets"])) == config.lengths(length)
    return source, target, found


def gaps(source, text):
    """How many tokens of the text each mask token of the source replaces, where no two masks are neighbours: the
    places of what lies beside it tell."""
    place = {token: index for index, token in enumerate(text.tolist())} | {"begin": -1, "end": len(text)}
    beside = ["begin", *source.tolist(), "end"]
    masks = [index for index, token in enumerate(beside) if token == MASK]
    return [
        place[beside[index + 1]] - place[beside[index - 1]] - 1
        for index in masks
        if MASK not in (beside[index - 1], beside[index + 1])
    ]


fractions = st.floats(0, 0.33)


@settings(deadline=None, max_examples=150, database=None)
@given(fractions, fractions, fractions, st.integers(1, 90), st.integers(0, 91), st.integers(0, 1000))
def test_what_is_read_and_what_is_left_out_are_the_text(infilled, masked, deleted, length, real, seed):
    """Without permutation the tokens that are left are a subsequence of the text, and all counts are those of the
    config. The target is the text."""
    shares = {"infilled": infilled, "masked": masked, "deleted": deleted}
    config = DenoisingConfig(**shares, permuted="nothing", rotated=not any(shares.values()))
    given = row(length, min(real, length + 1), seed)
    source, target, found = example(config, given, seed)
    text = given["tokens"][:-1][given["segment_ids"][:-1] != 0]
    np.testing.assert_array_equal(target, text)
    if len(text):
        spans, *removed = config.counts(len(text))
        kept = source[source != MASK]
        assert np.isin(kept, text).all() and len(kept) == len(text) - sum(removed) >= 1
        assert len(source) - len(kept) == spans + removed[1] and spans >= (removed[0] > 0)
        if not config.rotated:
            places = [text.tolist().index(token) for token in kept]
            assert places == sorted(places)
    # The decoder never reads a target at its own place: all tokens differ, and it reads those before.
    assert not ((found["decoder_tokens"] == found["targets"]) & (found["target_segment_ids"] == 1)).any()
    np.testing.assert_array_equal(found["decoder_tokens"], np.append(0, found["targets"])[:-1])


def test_shares_are_those_of_the_config():
    """Over 1e5 tokens."""
    config = DenoisingConfig(infilled=0.2, masked=0.1, random=0.3, deleted=0.15, permuted="nothing")
    masks, removed, others = 0, 0, 0
    for seed in range(200):
        source, text, _ = example(config, row(500, seed=seed), seed)
        spans = config.counts(500)[0]
        masks += (source == MASK).sum() - spans
        removed += len(text) - (len(source) - spans)
        others += (~np.isin(source, text) & (source != MASK)).sum()
        assert spans == round(0.2 * 500 / 3)
    assert masks / 1e5 == pytest.approx(0.1 * 0.7, abs=0.001)
    assert removed / 1e5 == pytest.approx(0.2 + 0.15, abs=0.001)
    # Random tokens are any of the 1,999 ids, of which 500 are in the text.
    assert others / 1e5 == pytest.approx(0.1 * 0.3 * 1499 / 1999, abs=0.001)


def test_lengths_of_spans_are_those_of_a_poisson_distribution():
    """Of all spans of 1e5 tokens, each probability within 1%, zero-length ones included."""
    config = DenoisingConfig(infilled=0.1, permuted="nothing")
    found = []
    for seed in range(300):
        given = row(900, seed=seed)
        source, text, _ = example(config, given, seed)
        found += gaps(source, text)
    shares = np.bincount(found, minlength=12) / len(found)
    np.testing.assert_allclose(shares[:12], stats.poisson(3).pmf(np.arange(12)), atol=0.01)
    assert len(found) > 8000 and np.mean(found) == pytest.approx(3, rel=0.01)
    assert np.mean(np.square(found)) == pytest.approx(12, rel=0.03)


def test_every_token_is_infilled_masked_or_deleted_as_often():
    for config, edge in (
        (DenoisingConfig(infilled=0.3, permuted="nothing"), 5),
        (DenoisingConfig(**PLAIN, masked=0.3), 0),
        (DenoisingConfig(**PLAIN, deleted=0.3), 0),
    ):
        given, left = row(60), np.zeros(60)
        for seed in range(2000):
            left += np.isin(given["tokens"][:-1], example(config, given, seed)[0])
        np.testing.assert_allclose(left[edge : 60 - edge] / 2000, 0.7, atol=0.05)


def sentences(tokens):
    """Of a list of tokens, as tuples that end with STOP."""
    found, current = [], []
    for token in tokens:
        current.append(token)
        if token == STOP:
            found.append(tuple(current))
            current = []
    return found + [tuple(current)] * bool(current)


def test_sentences_are_permuted_within_their_document_and_stay_whole():
    config = DenoisingConfig(infilled=0.0, sentence_ends=(STOP,))
    given, firsts = row(100, cuts=(40,)), []
    given["tokens"][[3, 10, 22, 30, 39, 50, 60, 75, 99]] = STOP
    for seed in range(600):
        source, _, _ = example(config, given, seed)
        for start, stop in ((0, 40), (40, 100)):
            text, read = (sentences(tokens[start:stop].tolist()) for tokens in (given["tokens"], source))
            assert sorted(text) == sorted(read)
        firsts.append(sentences(given["tokens"][:40].tolist()).index(sentences(source[:40].tolist())[0]))
    np.testing.assert_allclose(np.bincount(firsts) / 600, 0.2, atol=0.06)
    # A document that does not end with a stop ends its last sentence.
    given["tokens"][39] = 5
    source, _, _ = example(config, given)
    assert sorted(source[:40]) == sorted(given["tokens"][:40]) and (source[:40] != given["tokens"][:40]).any()


def test_a_document_is_rotated_to_begin_with_any_of_its_tokens():
    config = DenoisingConfig(**PLAIN, rotated=True)
    given, shifts = row(30, cuts=(10,)), []
    for seed in range(3000):
        source, _, _ = example(config, given, seed)
        for start, stop in ((0, 10), (10, 30)):
            text = given["tokens"][start:stop].tolist()
            shift = text.index(source[start])
            assert source[start:stop].tolist() == text[shift:] + text[:shift]
        shifts.append(given["tokens"][:10].tolist().index(source[0]))
    np.testing.assert_allclose(np.bincount(shifts, minlength=10) / 3000, 0.1, atol=0.02)


def test_deshuffling_reads_the_tokens_of_each_document_in_any_order():
    given, firsts = row(20, cuts=(5,)), []
    for seed in range(3000):
        source, target, found = example(DenoisingConfig.deshuffling(), given, seed)
        assert sorted(source[:5]) == sorted(target[:5]) and sorted(source[5:]) == sorted(target[5:])
        firsts.append(given["tokens"].tolist().index(source[0]))
    assert found["decoder_tokens"][0] == 0
    np.testing.assert_allclose(np.bincount(firsts, minlength=5) / 3000, 0.2, atol=0.025)


def test_bert_style_masks_in_place():
    config, counts = DenoisingConfig.bert_style(), np.zeros(2)
    for seed in range(200):
        source, target, _ = example(config, row(500, seed=seed), seed)
        assert len(source) == len(target) == 500
        counts += [(source == MASK).sum(), ((source != MASK) & (source != target)).sum()]
    np.testing.assert_allclose(counts / 1e5, [0.15 * 0.9, 0.15 * 0.1], atol=0.001)


def test_boundary_tokens_of_text_stay_and_stops_end_its_sentences():
    tokenizer = ByteTokenizerConfig().build(list, None, "")
    text = b"Foxes sleep. Dogs run! Cats?"
    tokens = np.array([256, *text, 257, 256, *text, 257, 258], np.int32)
    segments = np.repeat([1, 2, 0], [30, 30, 1]).astype(np.int32)
    given = {"tokens": tokens, "segment_ids": segments, "positions": np.zeros(61, np.int32)}
    examples = DenoisingConfig(infilled=0.0).examples(MODEL, tokenizer, 60)
    found = [examples.row(given, np.random.default_rng(seed)) for seed in range(50)]
    read = {bytes(one["encoder_tokens"][1:29].tolist()) for one in found}
    for one in found:
        np.testing.assert_array_equal(one["encoder_tokens"][[0, 29, 30, 59]], [256, 257, 256, 257])
        assert one["decoder_tokens"][0] == tokenizer.eos_id
    assert len(read) == 6 and b" Dogs run! Cats?Foxes sleep." in read


def test_the_decoder_reads_what_barts_reads():
    """transformers' `shift_tokens_right`, which starts with eos."""
    bart_code = pytest.importorskip("transformers.models.bart.modeling_bart")
    torch = pytest.importorskip("torch")
    _, target, found = example(DenoisingConfig(start_id=2, sentence_ends=(STOP,)), row(50))
    shifted = bart_code.shift_tokens_right(torch.tensor(target[None]), 1, 2)[0].numpy()
    np.testing.assert_array_equal(found["decoder_tokens"], shifted)


def test_the_loss_is_that_of_the_whole_text():
    objective, model = DenoisingConfig(sentence_ends=(STOP,)), build(MODEL)
    params = tiny.parameters(model)
    rows = [example(objective, row(40, real, seed=real), real)[2] for real in (41, 25)]
    batch = objective.batch({name: np.stack([one[name] for one in rows]) for name in rows[0]})
    loss, metrics = jax.jit(lambda params: objective.loss(model, params, batch))(params)
    logits = jax.jit(lambda: model.apply({"params": params}, batch.inputs).logits_BTV)()
    targets = np.stack([one["targets"] for one in rows])
    real = np.arange(40) < np.array([[40], [25]])
    nats = -np.asarray(jax.nn.log_softmax(logits))[real, targets[real]]
    assert float(loss) == pytest.approx(nats.sum(), rel=1e-5)
    assert means(metrics)["loss"] == pytest.approx(nats.mean(), rel=1e-5)
    source, target = objective.lengths(40)
    assert objective.training_flops(MODEL, 40) == 3 * count.pair_flops(MODEL, source, target) / 40


def test_the_source_has_no_padding_but_in_rows_that_have_it():
    config = DenoisingConfig(masked=0.1, deleted=0.1, sentence_ends=(STOP,))
    for length in (1, 2, 17, 512):
        assert len(example(config, row(length))[0]) >= config.lengths(length)[0] - 1
        for real in range(0, length, 13):
            example(config, row(length, real))
    assert DenoisingConfig().lengths(512) == (512 - 154 + 51, 512)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"infilled": 0.5, "masked": 0.3, "deleted": 0.2}, "their sum must be below 1"),
        ({"masked": -0.1}, "masked is -0.1"),
        ({"mean_span": 0.0}, "mean_span is 0.0"),
        ({"permuted": "words"}, "objective.permuted is 'words'"),
        (PLAIN, "objective DenoisingConfig has no noise"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DenoisingConfig(**fields)


def test_what_does_not_fit_is_refused():
    DenoisingConfig().check(MODEL, 1000)
    with pytest.raises(ValueError, match="trains encoder-decoders and model is of type Transformer.*families.t5 and b"):
        DenoisingConfig().check(tiny.tiny_llama(), 16)
    with pytest.raises(ValueError, match="sequences of 1001 tokens .* and model.max_length is 1000"):
        DenoisingConfig().check(MODEL, 1001)
    for config, message in (
        (DenoisingConfig(), "no id is known to end one: set objective.sentence_ends"),
        (DenoisingConfig(permuted="nothing", start_id=-1), "objective.start_id is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            config.examples(MODEL, None, 16)
    assert DenoisingConfig().special_tokens(16) == (special_tokens.MASK,)
