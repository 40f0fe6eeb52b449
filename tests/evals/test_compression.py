"""The compressors' figures are code lengths: n-gram probabilities sum to one, and follow Chen & Goodman (1998)."""

import collections
import gzip
import lzma
import math

import numpy as np
import pytest

from llm_jax.evals import compression
from llm_jax.evals.compression import ByteNGram, baselines, bits_per_byte, gzip_bits, xz_bits

TEXT = [b"the cat sat on the mat", b"the dog sat on the log", b"a cat and a dog", b"", b"the the the\n\n\xff\x00"]


def random_text(seed: int, size: int, letters: bytes = b"abc ") -> bytes:
    weights = np.arange(1, len(letters) + 1) / np.arange(1, len(letters) + 1).sum()
    return bytes(np.random.default_rng(seed).choice(list(letters), size=size, p=weights).astype(np.uint8))


class ReferenceKneserNey:
    """Modified Kneser-Ney on dictionaries of tuples, straight from the paper's equations."""

    def __init__(self, documents: list[bytes], order: int):
        self.order = order
        seen = collections.Counter()
        for document in documents:
            symbols = ["start"] * (order - 1) + list(document) + ["end"]
            seen.update(tuple(symbols[i : i + order]) for i in range(len(document) + 1))
        self.counts = {order: seen}
        for length in range(order - 1, 0, -1):
            preceded_by = collections.defaultdict(set)
            for gram in self.counts[length + 1]:
                preceded_by[gram[1:]].add(gram[0])
            self.counts[length] = {gram: len(symbols) for gram, symbols in preceded_by.items()}

    def discount(self, length: int, count: int) -> float:
        n = collections.Counter(self.counts[length].values())
        if any(n[i] == 0 for i in (1, 2, 3, 4)):
            return (0, 0.5, 1, 1.5)[min(count, 3)]
        found = [i - (i + 1) * n[1] / (n[1] + 2 * n[2]) * n[i + 1] / n[i] for i in (1, 2, 3)]
        return (0, *found)[min(count, 3)] if min(found) > 0 else (0, 0.5, 1, 1.5)[min(count, 3)]

    def probability(self, gram: tuple) -> float:
        if not gram:
            return 1 / 257
        shorter = self.probability(gram[1:])
        after = {g: c for g, c in self.counts[len(gram)].items() if g[:-1] == gram[:-1]}
        if not after:
            return shorter
        left = sum(self.discount(len(gram), c) for c in after.values())
        count = after.get(gram, 0)
        return (count - self.discount(len(gram), count) + left * shorter) / sum(after.values())

    def surprisals(self, document: bytes) -> list[float]:
        symbols = ["start"] * (self.order - 1) + list(document) + ["end"]
        grams = (tuple(symbols[i : i + self.order]) for i in range(len(document) + 1))
        return [-math.log2(self.probability(gram)) for gram in grams]


@pytest.mark.parametrize("order", [1, 2, 5, 7])
@pytest.mark.parametrize("context", [b"", b"t", b"the c", b"zzzzzz", b"xthe", b"the\xff\x00"])
def test_probabilities_sum_to_one_after_any_context(order, context):
    model = ByteNGram.train(TEXT, order)
    of_bytes = [model.surprisals(context + bytes([byte]))[len(context)] for byte in range(256)]
    of_end = model.surprisals(context)[len(context)]
    assert np.sum(2.0 ** -np.array([*of_bytes, of_end])) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_matches_an_independent_reference(order):
    documents = [*TEXT, random_text(0, 300), random_text(1, 200)]
    model, reference = ByteNGram.train(documents, order), ReferenceKneserNey(documents, order)
    for document in [b"the dog sat on a cat", b"", b"never seen", random_text(2, 40)]:
        np.testing.assert_allclose(model.surprisals(document), reference.surprisals(document), rtol=1e-10)


def test_reference_comparison_covers_both_kinds_of_discount():
    """Otherwise the comparison above could pass with one of them never used."""
    documents = [*TEXT, random_text(0, 300), random_text(1, 200)]
    reference = ReferenceKneserNey(documents, 5)
    kinds = {reference.discount(length, 1) == 0.5 for length in range(1, 6)}
    assert kinds == {True, False}


def test_approaches_the_entropy_of_a_markov_source():
    rng = np.random.default_rng(0)
    transitions = rng.dirichlet(np.full(4, 0.5), size=(4, 4))

    def draw(size: int) -> bytes:
        symbols, uniforms = [0, 1], rng.random(size)
        edges = transitions.cumsum(-1)
        for uniform in uniforms:
            symbols.append(min(int(np.searchsorted(edges[symbols[-2], symbols[-1]], uniform)), 3))
        return bytes(np.array(symbols[2:], np.uint8) + ord("a"))

    training, held_out = draw(150_000), draw(30_000)
    symbols = np.frombuffer(held_out, np.uint8) - ord("a")
    optimum = -np.log2(transitions[symbols[:-2], symbols[1:-1], symbols[2:]]).mean()
    found = {order: bits_per_byte(ByteNGram.train([training], order).bits, [held_out]) for order in (1, 2, 3, 5)}
    assert found[3] == pytest.approx(optimum, rel=0.005)
    assert optimum < found[5] < optimum * 1.01
    assert found[1] > found[2] * 1.02 > found[3] * 1.02**2


def test_documents_are_independent():
    apart, together = ByteNGram.train([b"ab", b"ab"], 2), ByteNGram.train([b"abab"], 2)
    assert apart.surprisals(b"ba")[1] > together.surprisals(b"ba")[1]
    assert apart.surprisals(b"a")[0] < together.surprisals(b"b")[0]
    assert apart.bits(b"ab") + apart.bits(b"ab") < apart.bits(b"abab")


def test_the_end_of_a_document_is_paid_for():
    model = ByteNGram.train([b"line\n", b"other line\n"])
    assert len(model.surprisals(b"line\n")) == 6
    assert model.surprisals(b"line\n")[-1] < 2 < 4 < model.surprisals(b"li")[-1]
    assert model.bits(b"") > 0


def test_training_in_chunks_changes_nothing(monkeypatch):
    documents = [random_text(seed, 100) for seed in range(30)]
    whole = ByteNGram.train(documents)
    monkeypatch.setattr(compression, "_CHUNK_BYTES", 250)
    assert len(list(compression._chunks(documents))) == 10
    for one, other in zip(whole.levels, ByteNGram.train(iter(documents)).levels, strict=True):
        np.testing.assert_array_equal(one.grams, other.grams)
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.leftovers, other.leftovers)


def test_gzip_and_xz_bits_are_the_size_of_what_decompresses():
    for document in [*TEXT, random_text(0, 20_000)]:
        assert gzip_bits(document) == 8 * len(gzip.compress(document, 9))
        assert xz_bits(document) == 8 * len(lzma.compress(document, preset=9))


def test_bits_per_byte_is_the_sum_over_documents_divided_by_their_bytes():
    documents = [b"aaaa", b"", b"bb"]
    assert bits_per_byte(lambda document: 3 + len(document), documents) == (3 + 4 + 3 + 3 + 2) / 6


def test_baselines_are_named_and_follow_from_their_parts():
    training, test = [random_text(seed, 5_000) for seed in (0, 1)], [random_text(2, 2_000), random_text(3, 1_000)]
    found = baselines(iter(training), iter(test))
    assert found == {
        "gzip-9": sum(map(gzip_bits, test)) / 3_000,
        "xz-9": sum(map(xz_bits, test)) / 3_000,
        "byte-5-gram": sum(map(ByteNGram.train(training).bits, test)) / 3_000,
    }
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    entropy = -np.sum(weights * np.log2(weights))
    assert entropy < found["byte-5-gram"] < found["gzip-9"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ByteNGram.train([b"a"], order=0), "order is 0"),
        (lambda: ByteNGram.train([b"a"], order=8), "order is 8: it must lie between 1 and 7"),
        (lambda: ByteNGram.train([]), "0 training documents"),
        (lambda: baselines([b"a"], []), "0 test documents hold 0 bytes"),
        (lambda: baselines([b"a"], [b"", b""]), "2 test documents hold 0 bytes"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
