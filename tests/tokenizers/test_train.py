"""Training: what is learnt, what is kept, what is refused."""

import dataclasses

import pytest
import sentencepiece

from llm_jax.tokenizers import TrainSentencePieceConfig
from llm_jax.tokenizers.train import sample_chunks, train

_CONFIG = TrainSentencePieceConfig(vocab_size=600)


def _pieces(content: bytes) -> set[str]:
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    return {model.id_to_piece(i).replace("\u2581", " ") for i in range(model.vocab_size())}


@pytest.mark.parametrize("name", ["bpe", "unigram", "phrases"])
def test_vocabulary_has_the_size_and_ids_asked_for(name, request):
    tokenizer = request.getfixturevalue(name)
    assert tokenizer.vocab_size == 1000
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)


def test_kinds_differ(bpe, unigram):
    assert _pieces(bpe.content) != _pieces(unigram.content)


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_indentation_and_line_ends_are_pieces(name, request):
    tokenizer = request.getfixturevalue(name)
    assert {"    ", "        ", ":\n", ")\n"} <= _pieces(tokenizer.content)
    assert len(tokenizer.encode("        ")) == 1


def test_tabs_are_learnt_where_they_are_used():
    documents = ["int main() {\n\t\treturn 0;\n\t\tx = 1;\n}\n" * 50]
    config = TrainSentencePieceConfig(vocab_size=290, split_by_script=False)
    assert any("\t\t" in piece for piece in _pieces(train(config, documents)))


def test_wider_boundaries_need_fewer_tokens(bpe, phrases, source_files):
    text = "".join(source_files)
    assert len(phrases.encode(text)) < 0.95 * len(bpe.encode(text))


def test_text_after_a_reserved_character_is_still_learnt():
    """SentencePiece passes over a sentence with U+2585."""
    text = "\u2585 " + "zebra " * 50
    assert " zebra" in _pieces(train(TrainSentencePieceConfig(vocab_size=271), [text]))


@pytest.mark.parametrize("end", ["", "\n"])
def test_long_lines_are_learnt(end):
    assert " zebra" in _pieces(train(TrainSentencePieceConfig(vocab_size=273), [("zebra " * 50_000 + end) * 2]))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_is_deterministic(kind, source_files):
    config = dataclasses.replace(_CONFIG, kind=kind)
    other = dataclasses.replace(config, vocab_size=601)
    assert train(config, source_files) == train(config, source_files) != train(other, source_files)


def test_model_is_kept_and_read_again(source_files, tmp_path):
    calls = []

    def documents():
        calls.append(1)
        return source_files

    first = _CONFIG.build(documents, tmp_path, "key")
    second = _CONFIG.build(documents, tmp_path, "key")
    assert (len(calls), first.digest) == (1, second.digest)
    assert [path.suffix for path in (tmp_path / "tokenizers").iterdir()] == [".model"]


def test_other_text_or_settings_train_anew(source_files, tmp_path):
    _CONFIG.build(lambda: source_files, tmp_path, "key")
    _CONFIG.build(lambda: source_files[:2], tmp_path, "other text")
    dataclasses.replace(_CONFIG, vocab_size=500).build(lambda: source_files, tmp_path, "key")
    assert len({*(tmp_path / "tokenizers").iterdir()}) == 3


def test_damaged_cache_file_is_named(source_files, tmp_path):
    _CONFIG.build(lambda: source_files, tmp_path, "key")
    (path,) = (tmp_path / "tokenizers").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{path.name} .delete it to train again. is not a SentencePiece model"):
        _CONFIG.build(lambda: source_files, tmp_path, "key")


def test_cache_that_cannot_be_written_is_refused(source_files, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written .*choose another cache folder"):
        _CONFIG.build(lambda: source_files, tmp_path / "file", "key")


def test_sample_is_everything_when_it_fits(source_files):
    chunks = sample_chunks(source_files, 10**9)
    lost = sum(map(len, source_files)) - sum(map(len, chunks))
    assert 0 <= lost <= 2 * len(chunks), "only line ends at the cuts may be missing"
    assert "".join(chunks).replace("\n", "") == "".join(source_files).replace("\n", "")


def test_sample_is_even_and_within_the_limit():
    documents = [f"document {number}\n" * 300 for number in range(200)]
    chunks = sample_chunks(documents, 100_000)
    assert 50_000 <= sum(len(chunk.encode()) for chunk in chunks) <= 100_000
    numbers = [int(chunk.split("\n")[1].split()[1]) for chunk in chunks]
    gaps = [after - before for before, after in zip(numbers, numbers[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert numbers[-1] > 180


def test_sample_counts_bytes_and_reads_one_pass():
    chunks = sample_chunks(iter(["漢" * 50_000]), 60_000)
    assert sum(len(chunk.encode()) for chunk in chunks) <= 60_000


@pytest.mark.parametrize("documents", [[], [""], ["\n", "\r\n\n"]])
def test_no_text_is_refused(documents, tmp_path):
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        _CONFIG.build(lambda: documents, tmp_path, "key")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_large_a_vocabulary_says_how_many_there_are(kind):
    config = TrainSentencePieceConfig(vocab_size=5000, kind=kind)
    with pytest.raises(ValueError, match=r"vocab_size is 5000 but .* yields only (\d+) pieces: set vocab_size") as info:
        train(config, ["a small text, but a text " * 3])
    most = int(str(info.value).split("at most ")[1].split(",")[0])
    assert train(dataclasses.replace(config, vocab_size=most), ["a small text, but a text " * 3])


def test_too_small_a_vocabulary_says_how_many_are_needed():
    text = "".join(map(chr, range(0x4E00, 0x4E80))) * 10
    with pytest.raises(ValueError, match="vocab_size is 300 but the text's characters alone need 388 pieces"):
        train(TrainSentencePieceConfig(vocab_size=300), [text])


def test_error_in_the_documents_is_passed_on(tmp_path):
    def documents():
        yield "fine"
        raise ValueError("file x is unreadable")

    with pytest.raises(ValueError, match="file x is unreadable"):
        _CONFIG.build(documents, tmp_path, "key")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "bpee"}, "kind is 'bpee'.*did you mean 'bpe'"),
        ({"vocab_size": 260}, "vocab_size is 260: it must exceed the 260 special and byte pieces"),
        ({"max_training_bytes": 0}, "max_training_bytes is 0"),
        ({"max_piece_length": 0}, "max_piece_length is 0"),
        ({"character_coverage": 1.5}, "character_coverage is 1.5"),
    ],
)
def test_bad_settings_are_refused_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainSentencePieceConfig(**{"vocab_size": 1000, **settings})
