import itertools

import numpy as np
import pytest

from llm_jax.data.cache import TokenDocuments
from llm_jax.data.packing import PackedRows, RandomWindows


def documents(*lengths):
    """Documents whose tokens are all different: 0, 1, 2, ... in the order of storage."""
    total = sum(lengths)
    return TokenDocuments(
        np.arange(total, dtype=np.uint32), np.cumsum([0, *lengths], dtype=np.int64), text_bytes=total, digest="d"
    )


def random_documents(count, seed=0, longest=30):
    return documents(*np.random.default_rng(seed).integers(0, longest, count))


def expected_stream(docs, order):
    """(token, document's place in the order, whether the document is new) by plain Python."""
    return [(int(token), place) for place, index in enumerate(order) for token in docs[index]]


def expected_row(stream, start, size):
    """One row, written down token by token."""
    tokens, segments, positions = [0] * size, [0] * size, [0] * size
    segment, position, previous = 0, 0, None
    for i, (token, place) in enumerate(stream[start : start + size]):
        segment, position = (segment, position + 1) if place == previous else (segment + 1, 0)
        tokens[i], segments[i], positions[i], previous = token, segment, position, place
    return {"tokens": tokens, "segment_ids": segments, "positions": positions}


def targets_within_documents(row):
    same = (row["segment_ids"][1:] == row["segment_ids"][:-1]) & (row["segment_ids"][1:] > 0)
    return row["tokens"][1:][same].tolist()


@pytest.mark.parametrize("sequence_length", [1, 5, 16, 1000])
@pytest.mark.parametrize("lengths", [(7, 1, 12, 3), (40,), (2, 2, 2, 2), (0, 3, 0, 0, 9, 0)])
def test_unshuffled_rows_are_the_stream_cut_with_one_token_of_overlap(lengths, sequence_length):
    docs = documents(*lengths)
    rows = PackedRows(docs, sequence_length, seed=0, shuffle=False)
    stream = expected_stream(docs, range(len(docs)))
    assert rows.rows_per_epoch == len(range(0, docs.total - 1, sequence_length))
    for i in range(rows.rows_per_epoch):
        row = rows[i]
        for name, values in expected_row(stream, i * sequence_length, sequence_length + 1).items():
            assert row[name].dtype == np.int32
            np.testing.assert_array_equal(row[name], values, err_msg=f"row {i} {name}")


def test_without_isolation_a_row_is_one_segment():
    docs = documents(7, 1, 12, 3)
    apart, joined = (PackedRows(docs, 8, seed=0, shuffle=False, isolate=isolate) for isolate in (True, False))
    for i in range(apart.rows_per_epoch):
        np.testing.assert_array_equal(apart[i]["tokens"], joined[i]["tokens"])
        filled = apart[i]["segment_ids"] > 0
        np.testing.assert_array_equal(joined[i]["segment_ids"], filled)
        np.testing.assert_array_equal(joined[i]["positions"], np.arange(9) * filled)
    assert apart[0]["segment_ids"].max() > 1


@pytest.mark.parametrize("sequence_length", [4, 16, 64])
def test_every_token_is_a_target_exactly_once_per_epoch(sequence_length):
    docs = random_documents(50)
    rows = PackedRows(docs, sequence_length, seed=3)
    first_tokens = set(docs.offsets[:-1][docs.lengths > 0].tolist())
    for epoch in range(3):
        indices = range(epoch * rows.rows_per_epoch, (epoch + 1) * rows.rows_per_epoch)
        targets = list(itertools.chain.from_iterable(targets_within_documents(rows[i]) for i in indices))
        # Nothing predicts the first token of a document; everything else is predicted once.
        assert sorted(targets) == sorted(set(range(docs.total)) - first_tokens)


def test_segments_are_consecutive_tokens_of_one_document():
    docs = random_documents(50)
    owner = np.repeat(np.arange(len(docs)), docs.lengths)
    rows = PackedRows(docs, 32, seed=1)
    for i in range(2 * rows.rows_per_epoch):
        row = rows[i]
        used = row["segment_ids"].max()
        assert set(row["segment_ids"].tolist()) - {0} == set(range(1, used + 1))
        for segment in range(1, used + 1):
            inside = row["segment_ids"] == segment
            tokens = row["tokens"][inside]
            assert len(set(owner[tokens])) == 1
            np.testing.assert_array_equal(np.diff(tokens), 1)
            np.testing.assert_array_equal(row["positions"][inside], np.arange(len(tokens)))


def test_rows_are_a_pure_function_of_seed_and_index():
    docs = random_documents(40)

    def epoch(seed, number, order):
        rows = PackedRows(docs, 16, seed)
        count = rows.rows_per_epoch
        found = {i: rows[number * count + i]["tokens"].tolist() for i in order(count)}
        return [found[i] for i in range(count)]

    forwards = epoch(0, 1, range)
    assert epoch(0, 1, lambda n: reversed(range(n))) == forwards
    assert epoch(1, 1, range) != forwards
    assert epoch(0, 2, range) != forwards
    # Rows are shuffled too, not only documents: neighbours do not overlap as they do in the stream.
    overlaps = sum(a[-1] == b[0] for a, b in itertools.pairwise(forwards))
    assert overlaps < len(forwards) / 2


def test_epochs_may_be_read_in_any_order_although_few_are_kept():
    docs = random_documents(40)
    rows, fresh = PackedRows(docs, 16, 0), PackedRows(docs, 16, 0)
    wanted = [7, 0, 3, 7, 1, 0]
    got = [rows[epoch * rows.rows_per_epoch]["tokens"] for epoch in wanted]
    for epoch, tokens in zip(wanted, got, strict=True):
        np.testing.assert_array_equal(tokens, fresh[epoch * rows.rows_per_epoch]["tokens"])


def test_a_single_token_cannot_be_packed():
    with pytest.raises(ValueError, match="have 1 tokens: at least 2"):
        PackedRows(documents(1), 8, seed=0)


def test_windows_are_slices_of_the_stream_at_every_place_nanogpt_can_draw():
    docs = documents(6, 5, 9)
    windows = RandomWindows(docs, 7, seed=0)
    rows = [windows[i] for i in range(400)]
    for row in rows:
        np.testing.assert_array_equal(np.diff(row["tokens"]), 1)
        np.testing.assert_array_equal(row["segment_ids"], 1)
        np.testing.assert_array_equal(row["positions"], np.arange(8))
    # torch.randint(len(data) - block_size): the last window ends with the last token.
    counts = np.bincount([row["tokens"][0] for row in rows], minlength=20)
    assert counts[13:].sum() == 0 and counts[:13].min() > 0
    # 400 draws over 13 places: chi-squared with 12 degrees of freedom stays below 40 but once in 10,000 seeds.
    assert ((counts[:13] - 400 / 13) ** 2 / (400 / 13)).sum() < 40


def test_windows_are_a_pure_function_of_seed_and_index():
    docs = documents(1000)
    windows = RandomWindows(docs, 7, seed=0)
    starts = [int(windows[i]["tokens"][0]) for i in range(50)]
    assert [int(RandomWindows(docs, 7, seed=0)[i]["tokens"][0]) for i in reversed(range(50))] == starts[::-1]
    assert [int(RandomWindows(docs, 7, seed=1)[i]["tokens"][0]) for i in range(50)] != starts


def test_a_stream_shorter_than_a_window_is_refused():
    RandomWindows(documents(8), 7, seed=0)
    with pytest.raises(ValueError, match=r"have 7 tokens, fewer than one row of sequence_length \+ 1 = 8"):
        RandomWindows(documents(7), 7, seed=0)
