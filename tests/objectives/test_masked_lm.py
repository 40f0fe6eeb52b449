import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.models.build import abstract_parameters, build
from llm_jax.models.families.bert import bert
from llm_jax.objectives import MaskedLMConfig
from llm_jax.tokenizers import ByteTokenizerConfig
from tests.helpers import tiny

T = 200
TOKENIZER = ByteTokenizerConfig().build(lambda: (), None, "")
MODEL = bert(1, 2, 8, vocab_size=264, max_length=T)


def row(real=T, seed=0):
    """Two documents of bytes with boundary tokens, and padding."""
    tokens = np.random.default_rng(seed).integers(0, 256, T + 1).astype(np.int32)
    segments = np.where(np.arange(T + 1) < 60, 1, 2).astype(np.int32)
    tokens[[0, 60]], tokens[[59, real - 1]] = TOKENIZER.bos_id, TOKENIZER.eos_id
    tokens[real:], segments[real:] = TOKENIZER.pad_id, 0
    positions = np.concatenate([np.arange(60), np.arange(T + 1 - 60)]).astype(np.int32)
    return {"tokens": tokens, "segment_ids": segments, "positions": positions}


def example(config=MaskedLMConfig(), given=None, seed=0):  # noqa: B008
    given = row() if given is None else given
    return config.examples(MODEL, TOKENIZER, T).row(given, np.random.default_rng(seed))


def predicted(found):
    """bool [T], the tokens that are predicted; their targets are the tokens."""
    chosen, real = np.zeros(len(found["tokens"]), bool), found["loss_weights"] == 1
    chosen[found["at"][real]] = True
    assert chosen.sum() == real.sum() and (np.diff(found["at"][real]) > 0).all()
    np.testing.assert_array_equal(found["targets"][real], found["tokens"][chosen])
    return chosen


@pytest.mark.parametrize("real", [T, 150, 61])
def test_a_share_of_the_tokens_of_text_is_chosen_exactly(real):
    given = row(real)
    found = example(given=given)
    text = (given["segment_ids"][:-1] != 0) & (given["tokens"][:-1] < 256)
    chosen = predicted(found)
    assert chosen.sum() == round(0.15 * text.sum()) and not (chosen & ~text).any()
    assert set(np.unique(found["loss_weights"])) == {0.0, 1.0}
    np.testing.assert_array_equal(found["tokens"], given["tokens"][:-1])
    np.testing.assert_array_equal(found["inputs"][~chosen], given["tokens"][:-1][~chosen])


def test_of_the_chosen_tokens_the_model_reads_masks_random_ones_and_themselves():
    kinds = np.zeros(3)
    for seed in range(300):
        found = example(seed=seed)
        chosen = predicted(found)
        read, true = found["inputs"][chosen], found["tokens"][chosen]
        kinds += [(read == 263).sum(), ((read != 263) & (read != true)).sum(), (read == true).sum()]
        assert ((read == 263) | (read < TOKENIZER.vocab_size)).all()
    np.testing.assert_allclose(kinds / kinds.sum(), [0.8, 0.1, 0.1], atol=0.01)


def text_row(seed):
    """Two documents of words of 1 to 9 letters."""
    generator = np.random.default_rng(seed)
    letters = lambda: "".join(generator.choice(list("abc"), generator.integers(1, 10)))  # noqa: E731
    given = row(seed=seed)
    text = np.frombuffer(" ".join(letters() for _ in range(T)).encode()[: T + 1], np.uint8)
    return given | {"tokens": np.where(given["tokens"] < 256, text, given["tokens"]).astype(np.int32)}


WORDS = MaskedLMConfig(units="words")


def test_all_tokens_of_a_word_are_chosen_or_none():
    """Words are those of Python's `split`."""
    for seed in range(50):
        given = text_row(seed)
        chosen = predicted(example(WORDS, given, seed))
        text = "".join(chr(token) if token < 256 else " " for token in given["tokens"][:-1])
        starts = [0, *(place for place in range(1, T) if text[place].isspace() or text[place - 1].isspace())]
        # The row begins with bos, which is never chosen.
        words = [chosen[start:stop] for start, stop in zip(starts, [*starts[1:], T], strict=True)]
        assert all(word.all() or not word.any() for word in words) and not chosen[0]
        assert {len(word) for word in words if word.any()} > {1}


def test_whole_words_come_to_the_rate_whatever_their_lengths():
    """Over 1e5 tokens; long words and spaces are chosen as often as the rate says."""
    counts, totals = np.zeros(2), np.zeros(2)
    for seed in range(500):
        given = text_row(seed)
        chosen = predicted(example(WORDS, given, seed))
        text = given["tokens"][:-1] < 256
        assert abs(chosen.sum() - 0.15 * text.sum()) < 9  # the longest word has nine letters
        for index, kind in enumerate((given["tokens"][:-1] == 32, given["tokens"][:-1] != 32)):
            counts[index] += (chosen & text & kind).sum()
            totals[index] += (text & kind).sum()
    assert totals.sum() > 95_000
    assert counts.sum() / totals.sum() == pytest.approx(0.15, abs=0.0015)
    np.testing.assert_allclose(counts / totals, 0.15, atol=0.01)


def test_a_row_without_text_has_no_whole_words():
    given = {name: np.zeros(T + 1, np.int32) for name in ("tokens", "segment_ids", "positions")}
    assert example(WORDS, given)["loss_weights"].sum() == 0


def test_words_of_data_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="objective.units is 'words' and the data are no text"):
        WORDS.examples(MODEL, None, T)


def test_masks_are_drawn_by_the_generator_alone():
    first, again, other = example(seed=1), example(seed=1), example(seed=2)
    np.testing.assert_array_equal(first["inputs"], again["inputs"])
    assert (first["inputs"] != other["inputs"]).any()


def test_a_row_of_padding_has_no_target():
    given = {name: np.zeros(T + 1, np.int32) for name in ("tokens", "segment_ids", "positions")}
    assert example(given=given)["loss_weights"].sum() == 0


def test_the_loss_is_the_mean_over_the_chosen_tokens_given_what_the_model_reads():
    objective, model = MaskedLMConfig(), build(MODEL)
    params = tiny.parameters(model)
    rows = [example(given=row(real), seed=real) for real in (T, 150)]
    batch = objective.batch({name: np.stack([one[name] for one in rows]) for name in rows[0]})
    loss, metrics = jax.jit(lambda params: objective.loss(model, params, batch))(params)
    logits = jax.jit(lambda: model.apply({"params": params}, batch.inputs).logits_BTV)()
    chosen = np.stack(list(map(predicted, rows)))
    targets = np.stack([one["tokens"] for one in rows])
    nats = -np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))[chosen, targets[chosen]]
    assert float(loss) == pytest.approx(nats.sum(), rel=1e-5)
    assert means(metrics)["loss"] == pytest.approx(nats.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0.0}, "objective.rate is 0.0: it must be above 0"),
        ({"masked": 0.95, "random": 0.1}, "their sum must not exceed 1"),
        ({"units": "wrods"}, "objective.units is 'wrods'.*words"),
        ({"masked": -0.1}, "masked is -0.1"),
    ],
)
def test_shares_that_are_none_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskedLMConfig(**fields)


def test_decoders_are_refused():
    MaskedLMConfig().check(MODEL, T)
    with pytest.raises(ValueError, match="requires a bidirectional model, and the model is causal"):
        MaskedLMConfig().check(tiny.tiny_llama(), 16)


def test_the_head_scores_the_predicted_tokens_alone():
    model = bert(1, 2, 64, vocab_size=8192, max_length=256)
    made, params = build(model), abstract_parameters(build(model))[0]

    def flops(objective):
        batch = objective.abstract_batch(model, None, 256, 4)
        step = jax.jit(jax.grad(lambda params, batch: objective.loss(made, params, batch)[0]))
        return step.lower(params, batch).cost_analysis()["flops"], objective.training_flops(model, 256) * 256 * 4

    (few, counted_few), (all_of_them, counted_all) = flops(MaskedLMConfig()), flops(MaskedLMConfig(rate=1.0))
    # At this size the head is nearly all of the work.
    assert few / all_of_them < 0.3 and few / all_of_them == pytest.approx(counted_few / counted_all, abs=0.03)
