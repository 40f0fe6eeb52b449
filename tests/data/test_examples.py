"""Objectives change documents before they are packed, and rows after."""

import numpy as np
import pytest

from llm_jax.data import (
    CopyConfig,
    CorpusConfig,
    DataConfig,
    HashSplit,
    PackedConfig,
    RandomWindowsConfig,
    TextFilesConfig,
)
from llm_jax.data.examples import Examples, TokenField
from tests.helpers import tiny_run
from tests.helpers.fake_tokenizer import FakeTokenizer

SENTINEL = 7


class Doubled(Examples):
    """Half of the documents are followed by a sentinel and their tokens in a random order, which alone count."""

    fields = (TokenField("counts", "float32", padding=-1),)

    def document(self, tokens, draw, generator):
        if draw >= 0.5:
            return {"tokens": tokens, "counts": np.zeros(len(tokens), np.float32)}
        shuffled = generator.permutation(tokens)
        counts = np.repeat([0, 1], [len(tokens) + 1, len(tokens)]).astype(np.float32)
        return {"tokens": np.concatenate([tokens, [SENTINEL], shuffled]), "counts": counts}

    def lengths(self, lengths, draws):
        return np.where(draws < 0.5, 2 * lengths + 1, lengths)


@pytest.fixture
def folder(tmp_path):
    return tiny_run.write_corpus(tmp_path).parent


def dataset(folder, examples, packing=PackedConfig(), batch_size=4):  # noqa: B008
    source = CorpusConfig(TextFilesConfig((str(folder / "corpus"),)), HashSplit(0.2, 0.2), packing)
    return DataConfig(source, 16, batch_size).build(FakeTokenizer(), folder / "cache", 0, examples)


def stream(batches, names=("tokens", "counts")):
    """The arrays of consecutive rows as one, without padding and without the token that two rows share."""
    rows = [{name: batch[name][i] for name in (*names, "segment_ids")} for batch in batches for i in range(4)]
    found = {name: [] for name in names}
    for number, row in enumerate(rows):
        real = row["segment_ids"] != 0
        for name in names:
            found[name] += row[name][real].tolist()[int(number > 0) :]
    return found


def test_documents_are_changed_before_they_are_packed(folder):
    """In the order of the source, document by document, against plain Python."""
    in_order = PackedConfig(shuffle=False)
    plain = dataset(folder, Examples(), in_order).evaluation()[0].batches
    built = dataset(folder, Doubled(), in_order).evaluation()[0].batches
    found, documents = stream(built), [[]]
    end = FakeTokenizer().eos_id
    for token in stream(plain, ("tokens",))["tokens"]:
        documents[-1].append(token)
        if token == end:
            documents.append([])
    place, doubled = 0, 0
    for document in documents[:-1]:
        size = len(document)
        assert found["tokens"][place : place + size] == document and not any(found["counts"][place : place + size])
        place += size
        if found["tokens"][place : place + 1] == [SENTINEL]:
            again = found["tokens"][place + 1 : place + 1 + size]
            assert sorted(again) == sorted(document) and again != document
            assert found["counts"][place : place + 1 + size] == [0] + [1] * size
            place, doubled = place + 1 + size, doubled + 1
    assert place == len(found["tokens"]) and 0 < doubled < len(documents) - 1


def test_fields_have_their_dtype_and_their_padding(folder):
    *_, last = dataset(folder, Doubled()).evaluation()[0].batches
    assert last["counts"].dtype == np.float32
    padding = last["segment_ids"] == 0
    assert padding.any() and (last["counts"][padding] == -1).all() and (last["counts"][~padding] >= 0).all()


def test_a_row_depends_on_seed_and_index_alone_and_differs_by_epoch(folder):
    data = dataset(folder, Doubled())
    batches = [next(data.train_iterator(step)) for step in range(40)]
    again = dataset(folder, Doubled()).train_iterator()
    for batch in batches:
        for name, array in next(again).items():
            np.testing.assert_array_equal(array, batch[name])
    halves = [next(data.train_iterator(3, host, 2)) for host in (0, 1)]
    for name, array in batches[3].items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), array)


def test_bits_per_byte_are_not_defined_where_documents_are_changed(folder):
    assert dataset(folder, Examples()).evaluation()[0].text_bytes > 0
    assert dataset(folder, Doubled()).evaluation()[0].text_bytes is None


class TooShort(Doubled):
    def lengths(self, lengths, draws):
        return lengths


class Fractions(Doubled):
    def lengths(self, lengths, draws):
        return lengths / 2


def test_lengths_that_are_not_those_of_the_documents_are_refused(folder):
    with pytest.raises(ValueError, match=r"TooShort.document returned tokens \(\d+,\), counts .* each with the"):
        list(dataset(folder, TooShort()).evaluation()[0].batches)
    with pytest.raises(ValueError, match="Fractions.lengths returned shape .* and type float64"):
        dataset(folder, Fractions())


def test_sources_and_packings_without_documents_are_refused(folder):
    with pytest.raises(ValueError, match="RandomWindowsConfig, which reads windows of the tokenised text"):
        dataset(folder, Doubled(), RandomWindowsConfig())
    with pytest.raises(ValueError, match="Doubled changes documents before packing, and CopyConfig has no"):
        DataConfig(CopyConfig(), 40, 4).build(None, folder, 0, Doubled())


class Beginnings(Examples):
    """The first two tokens of each document."""

    def document(self, tokens, draw, generator):
        return {"tokens": tokens[:2]}

    def lengths(self, lengths, draws):
        return np.minimum(lengths, 2)


def test_a_training_part_that_becomes_smaller_than_a_batch_is_refused(folder):
    dataset(folder, Examples(), batch_size=16)
    with pytest.raises(ValueError, match=r"tokens in \d+ documents: one batch requires"):
        dataset(folder, Beginnings(), batch_size=16)
