import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.models.build import build
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


@pytest.mark.parametrize("real", [T, 150, 61])
def test_a_share_of_the_tokens_of_text_is_chosen_exactly(real):
    given = row(real)
    found = example(given=given)
    text = (given["segment_ids"][:-1] != 0) & (given["tokens"][:-1] < 256)
    chosen = found["loss_weights"] == 1
    assert chosen.sum() == round(0.15 * text.sum()) and not (chosen & ~text).any()
    assert set(np.unique(found["loss_weights"])) == {0.0, 1.0}
    np.testing.assert_array_equal(found["tokens"], given["tokens"][:-1])
    np.testing.assert_array_equal(found["inputs"][~chosen], given["tokens"][:-1][~chosen])


def test_of_the_chosen_tokens_the_model_reads_masks_random_ones_and_themselves():
    kinds = np.zeros(3)
    for seed in range(300):
        found = example(seed=seed)
        chosen = found["loss_weights"] == 1
        read, true = found["inputs"][chosen], found["tokens"][chosen]
        kinds += [(read == 263).sum(), ((read != 263) & (read != true)).sum(), (read == true).sum()]
        assert ((read == 263) | (read < TOKENIZER.vocab_size)).all()
    np.testing.assert_allclose(kinds / kinds.sum(), [0.8, 0.1, 0.1], atol=0.01)


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
    chosen = np.stack([one["loss_weights"] for one in rows]) == 1
    targets = np.stack([one["tokens"] for one in rows])
    nats = -np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))[chosen, targets[chosen]]
    assert float(loss) == pytest.approx(nats.sum(), rel=1e-5)
    assert means(metrics)["loss"] == pytest.approx(nats.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0.0}, "objective.rate is 0.0: it must be above 0"),
        ({"masked": 0.95, "random": 0.1}, "their sum must not exceed 1"),
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
