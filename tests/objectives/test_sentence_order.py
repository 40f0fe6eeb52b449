"""Pairs are consecutive parts of one document, half of them swapped, and a model learns which."""

import dataclasses

import jax
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.models.build import boxed_parameters, build
from llm_jax.models.families.bert import bert
from llm_jax.models.families.encoder import sequence_head
from llm_jax.objectives.sentence_order import SentenceOrderConfig
from llm_jax.optim import AdamWConfig, Constant
from llm_jax.train.state import initial_state
from llm_jax.train.step import StepConfig, train_step
from tests.helpers import tiny
from tests.helpers.made_rows import stacked
from tests.helpers.small_tokenizers import tokenizer

T, SEPARATOR = 32, 263
MODEL = bert(2, 2, 16, vocab_size=264, max_length=T, head=sequence_head(2))
BYTES = tokenizer("byte")
SENTENCES, TOKENS = SentenceOrderConfig(), SentenceOrderConfig(units="tokens")


def packed(*texts):
    """A row of the documents, with boundary tokens, and padding."""
    documents = [[BYTES.bos_id, *text.encode(), BYTES.eos_id] for text in texts]
    row = {name: np.zeros(T + 1, np.int32) for name in ("tokens", "segment_ids", "positions")}
    lengths = [len(document) for document in documents]
    total = sum(lengths)
    row["tokens"][:total] = np.concatenate(documents)
    row["segment_ids"][:total] = np.repeat(np.arange(1, len(texts) + 1), lengths)
    row["positions"][:total] = np.concatenate([np.arange(length) for length in lengths])
    return row


def example(objective, row, seed=0):
    return objective.examples(MODEL, BYTES, T).row(row, np.random.default_rng(seed))


def parts(found):
    """The texts of a pair in the order of the document, and whether they are swapped."""
    tokens = found["tokens"][found["segment_ids"] == 1].tolist()
    middle = tokens.index(SEPARATOR)
    assert tokens[0] == BYTES.bos_id and tokens[-1] == SEPARATOR
    assert found["types"][: len(tokens)].tolist() == [0] * (middle + 1) + [1] * (len(tokens) - middle - 1)
    assert found["positions"][: len(tokens)].tolist() == list(range(len(tokens)))
    assert all(len(found[name]) == T for name in ("tokens", "types", "positions", "segment_ids"))
    pair = [bytes(tokens[1:middle]).decode(), bytes(tokens[middle + 1 : -1]).decode()]
    return (pair[::-1] if found["labels"] else pair), int(found["labels"])


def test_parts_are_consecutive_and_half_of_the_pairs_are_swapped():
    text, swapped, cuts = "One. Two! Three? Four", 0, set()
    for seed in range(400):
        (first, second), label = parts(example(SENTENCES, packed(text), seed))
        assert first + second == text and first[-1] in ".!?"
        swapped += label
        cuts.add(first)
    assert cuts == {"One.", "One. Two!", "One. Two! Three?"} and abs(swapped / 400 - 0.5) < 0.08
    anywhere = {len(parts(example(TOKENS, packed("abcd"), seed))[0][0]) for seed in range(100)}
    assert anywhere == {1, 2, 3}


def test_both_parts_are_of_one_document_and_longer_ones_are_drawn_more_often():
    counts = {"a": 0, "b": 0}
    for seed in range(400):
        (first, second), _ = parts(example(TOKENS, packed("aaaaa", "b" * 15), seed))
        assert len(set(first + second)) == 1
        counts[first[0]] += 1
    assert abs(counts["b"] / 400 - 0.75) < 0.07


def test_parts_that_are_too_long_keep_what_stands_where_they_meet():
    row = {name: array.copy() for name, array in packed("x").items()}
    row["tokens"][:], row["segment_ids"][:] = np.arange(65, 65 + T + 1), 1
    for seed in range(50):
        found = example(TOKENS, row, seed)
        tokens = found["tokens"]
        assert (found["segment_ids"] == 1).all() and (tokens == SEPARATOR).sum() == 2
        (first, second), _ = parts(found)
        assert len(first + second) == T - 3
        joined = [ord(character) for character in first + second]
        assert joined == list(range(joined[0], joined[0] + T - 3))


def test_a_row_without_a_pair_has_no_loss():
    nothing = {name: np.zeros(T + 1, np.int32) for name in ("tokens", "segment_ids", "positions")}
    for objective, row in ((SENTENCES, packed("no end")), (SENTENCES, packed("One.")), (TOKENS, nothing)):
        found = example(objective, row)
        assert found["weights"] == 0 and not found["segment_ids"].any()
    model = build(MODEL)
    batch = stacked(SENTENCES, [example(SENTENCES, packed("One. Two.")), example(SENTENCES, packed("none"))])
    _, metrics = SENTENCES.loss(model, tiny.parameters(model), batch)
    assert means(metrics)["pairs"] == 0.5 and float(metrics["loss"].count) == 1
    assert SENTENCES.abstract_batch(MODEL, BYTES, T, 4).inputs.tokens_BT.shape == (4, T)


def test_a_model_learns_the_order():
    model, draw = build(MODEL), np.random.default_rng(0)
    optimizer = AdamWConfig(peak_lr=3e-3, schedule=Constant(warmup_steps=10)).build(150, boxed_parameters(model))
    state = initial_state(model, optimizer, 0, False)
    step, losses = jax.jit(train_step(model, SENTENCES, optimizer, StepConfig(), 0)), []
    # The letters of a document increase.
    texts = ["".join(f"{letter}." for letter in sorted(draw.choice(list("abcdefghij"), 6, False))) for _ in range(500)]
    for number in range(150):
        rows = [example(SENTENCES, packed(texts[draw.integers(500)]), 1000 * number + i) for i in range(16)]
        state, report = step(state, stacked(SENTENCES, rows))
        losses.append(means(report.metrics)["loss"])
    assert losses[0] > 0.6 and np.mean(losses[-10:]) < 0.35, losses[::10]


def test_what_does_not_fit_is_refused():
    SENTENCES.check(MODEL, T)
    with pytest.raises(ValueError, match="model.head.classes is 3: order and swapped are 2 classes"):
        SENTENCES.check(dataclasses.replace(MODEL, head=sequence_head(3)), T)
    with pytest.raises(ValueError, match="sequence_length is 4: a pair needs 5 tokens"):
        SENTENCES.check(MODEL, 4)
    with pytest.raises(ValueError, match="units is 'words'"):
        SentenceOrderConfig(units="words")
    with pytest.raises(ValueError, match="the data are no text: set it to 'tokens'"):
        SENTENCES.examples(MODEL, None, T)
