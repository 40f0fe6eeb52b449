"""Experts are seen to specialise where they do, and classes are those that a reader would name."""

import dataclasses

import jax
import numpy as np
import pytest

from llm_jax.evals.specialisation import CLASSES, TokenClasses, mutual_information, specialisation
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.fixed import HashConfig, RandomConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.families.llama import llama
from llm_jax.models.stack import Segment
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.batch import Batch
from llm_jax.tokenizers.byte import ByteTokenizer
from tests.helpers import tiny

TOKENIZER = ByteTokenizer()
TEXT = "Of 31 words, 12 are here; _so_ (they say) it is: über 9 dogs ran off.\n\nNo?  Yes! 2026 was it. "


def _batch(text, rows=3, padding=4):
    ids = np.array([TOKENIZER.bos_id, *TOKENIZER.encode(text)], np.int32)
    ids = np.tile(np.concatenate([ids, np.full(padding, TOKENIZER.pad_id, np.int32)]), (rows, 1))
    segments = (np.arange(ids.shape[1]) < ids.shape[1] - padding) * np.ones_like(ids)
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return Batch.next_tokens({"tokens": ids, "segment_ids": segments, "positions": positions})


def _model(*routers):
    config = llama(1, 2, 8, hidden=12, vocab_size=TOKENIZER.vocab_size, max_length=160)
    block = config.segments[0].blocks[0]
    blocks = tuple(dataclasses.replace(block, ffn=MoEConfig(4, block.ffn, router)) for router in routers)
    model = Transformer(dataclasses.replace(config, segments=(Segment((block,), 1), Segment((*blocks, block), 2))))
    return model, tiny.parameters(model)


def _named(text):
    ids = np.array([[TOKENIZER.bos_id, *TOKENIZER.encode(text)]])
    return [None if found < 0 else CLASSES[found] for found in TokenClasses.of(TOKENIZER).rows(ids)[0]]


def test_bytes_are_what_a_reader_would_call_them():
    start, more = "word start", "word continuation"
    assert _named("It's 4x\n") == [
        *(None, start, more, "punctuation", start, "whitespace", "digit", more, "whitespace"),
    ]
    assert _named("é.")[1:] == [start, more, "punctuation"]


class Pieces:
    """A tokenizer whose pieces carry their spaces, and which drops that at the beginning of a text."""

    pieces = ("<s>", "a", "▁the", "ing", "▁", "▁42", "7", "▁(", "▁\n")
    vocab_size = len(pieces)

    def encode(self, text):
        return [self.pieces.index(text)]

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids if i).replace("▁", " ").removeprefix(" ")


def test_pieces_with_a_space_begin_words_whatever_stands_before_them():
    rows = TokenClasses.of(Pieces()).rows(np.array([[0, 2, 3, 2, 4, 3, 5, 6, 7, 3, 8]]))[0]
    named = [None if found < 0 else CLASSES[found] for found in rows]
    start, more = "word start", "word continuation"
    assert named == [
        None,
        start,
        more,
        start,
        "whitespace",
        start,
        "digit",
        "digit",
        "punctuation",
        start,
        "whitespace",
    ]


def test_visits_of_real_tokens_are_counted_for_every_layer():
    model, params = _model(SoftmaxConfig(2), HashConfig(1))
    found = specialisation(model, params, [_batch(TEXT), _batch(TEXT[:50])], TOKENIZER)
    assert {path: counts.shape for path, counts in found.counts.items()} == {
        "stack/segment_1/block_0": (2, 5, 4),
        "stack/segment_1/block_1": (2, 5, 4),
    }
    names = [name for text in (TEXT, TEXT[:50]) for name in _named(text)]
    by_class = 3 * np.array([names.count(name) for name in CLASSES])
    for path, visits in (("stack/segment_1/block_0", 2), ("stack/segment_1/block_1", 1)):
        for counts_CE in found.counts[path]:
            np.testing.assert_array_equal(counts_CE.sum(1), visits * by_class)
        for share_CE, _ in found.layers(path):
            np.testing.assert_allclose(share_CE.sum(1), 1)
    # A hash says the same in every layer.
    np.testing.assert_array_equal(*found.counts["stack/segment_1/block_1"])


def test_a_hash_of_bytes_tells_more_of_their_class_than_experts_at_random():
    model, params = _model(HashConfig(1), RandomConfig(1))
    found = specialisation(model, params, [_batch(TEXT)], TOKENIZER)
    hashed, drawn = (list(found.layers(f"stack/segment_1/block_{block}"))[0][1] for block in (0, 1))
    assert hashed > 0.2 > drawn


def test_mutual_information_is_that_of_the_table():
    assert mutual_information(np.eye(4)) == pytest.approx(2)
    assert mutual_information(np.outer([1, 2], [3, 5])) == pytest.approx(0, abs=1e-12)
    # H(X) + H(Y) - H(X, Y) by hand.
    entropy = lambda p: -np.sum(p * np.log2(p))  # noqa: E731
    joint = np.array([[3, 1], [1, 3]]) / 8
    expected = 2 * entropy(np.array([0.5, 0.5])) - entropy(joint.ravel())
    assert mutual_information(100 * joint) == pytest.approx(expected)
    assert mutual_information(np.zeros((2, 2))) == 0


def test_nothing_to_count_is_refused():
    model, params = _model(SoftmaxConfig(1))
    with pytest.raises(ValueError, match="at least one is required"):
        specialisation(model, params, [], TOKENIZER)
    dense = Transformer(llama(1, 2, 8, hidden=12, vocab_size=TOKENIZER.vocab_size, max_length=160))
    with pytest.raises(ValueError, match="the model has no MoE layer"):
        specialisation(dense, tiny.parameters(dense), [_batch(TEXT)], TOKENIZER)


def test_counting_leaves_the_parameters_of_a_model_alone():
    model, _ = _model(SoftmaxConfig(1))
    made = jax.eval_shape(model.init, jax.random.key(0), tiny.tokens(1, 4))
    assert set(made["params"]) == {"embed", "stack", "final_norm", "head"}
