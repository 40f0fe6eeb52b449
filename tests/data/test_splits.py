import hashlib

import pytest

from llm_jax.data.sources import TextFilesConfig
from llm_jax.data.splits import ContentSplit, HashSplit, Joined, Limited, RangeSplit, SeparateSources

PARTS = ("train", "validation", "test")


@pytest.fixture
def many(tmp_path):
    """400 small files."""
    for i in range(400):
        (tmp_path / f"{i:03}.txt").write_text(f"document {i} " + "é" * (i % 7))
    return TextFilesConfig((str(tmp_path),)).build()


def names(source):
    return [document.name for document in source]


def test_hash_split_divides_the_documents_in_about_the_stated_fractions(many):
    split = HashSplit(validation=0.2, test=0.1)
    parts = [names(split.part(many, part)) for part in PARTS]
    assert sorted(sum(parts, [])) == names(many)
    # Five standard deviations of the binomial distribution.
    for part, fraction in zip(parts, (0.7, 0.2, 0.1), strict=True):
        assert abs(len(part) - 400 * fraction) < 5 * (400 * fraction * (1 - fraction)) ** 0.5


def test_hash_split_depends_on_the_name_alone(many, tmp_path):
    split = HashSplit(validation=0.2, test=0.1)
    before = names(split.part(many, "validation"))
    (tmp_path / "050.txt").write_text("something else")
    (tmp_path / "new.txt").write_text("a document more")
    after = names(split.part(many, "validation"))
    assert [name for name in after if name != "new.txt"] == before


@pytest.fixture
def repeated(tmp_path):
    """200 files of which each text is in two, and 40 of one text."""
    for i in range(200):
        (tmp_path / f"{i:03}.txt").write_text(f"text {i % 100}")
    for i in range(40):
        (tmp_path / f"same-{i}.txt").write_text("one text")
    return TextFilesConfig((str(tmp_path),)).build()


def test_content_split_puts_equal_texts_into_one_part_whatever_their_names(repeated):
    split = ContentSplit(validation=0.3, test=0.2)
    parts = [list(split.part(repeated, part)) for part in PARTS]
    assert sorted(document.name for part in parts for document in part) == names(repeated)
    texts = [{document.text for document in part} for part in parts]
    assert all(texts) and sum(map(len, texts)) == 101
    # By names they are not kept apart: this is what the split is for.
    by_name = [{d.text for d in HashSplit(0.3, 0.2).part(repeated, part)} for part in PARTS]
    assert len(by_name[0] & by_name[1]) > 10


def test_content_split_follows_the_bytes_of_the_text_alone(many, tmp_path):
    split = ContentSplit(validation=0.25, test=0.0)
    held_out = {document.text for document in split.part(many, "validation")}
    for document in many:
        digest = hashlib.blake2b(document.text.encode(), digest_size=16).hexdigest()
        assert (document.text in held_out) == (int(digest[:12], 16) / 16**12 >= 0.75)
    for file in sorted(tmp_path.glob("*.txt"))[:200]:
        file.rename(tmp_path / f"renamed-{file.name}")
    (tmp_path / "new.txt").write_text("a document more")
    renamed = {document.text for document in split.part(TextFilesConfig((str(tmp_path),)).build(), "validation")}
    assert renamed - {"a document more"} == held_out


def test_content_split_of_pieces_of_one_file_keeps_equal_pieces_together(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"piece {i % 50}" for i in range(300)))
    source = TextFilesConfig((str(tmp_path / "a.txt"),), separator="\n\n").build()
    train, held_out = ({d.text for d in ContentSplit(0.4, 0.0).part(source, part)} for part in PARTS[:2])
    assert train and held_out and not train & held_out


@pytest.mark.parametrize("split", [HashSplit(0.2, 0.1), ContentSplit(0.2, 0.1)])
def test_every_record_that_is_no_text_is_counted_in_one_part(many, tmp_path, split):
    for i in range(0, 400, 40):
        (tmp_path / f"{i:03}.txt").write_bytes(b"\xff")
    for policy in ("skip", "replace"):
        source = TextFilesConfig((str(tmp_path),), invalid_utf8=policy).build()
        assert sorted(sum((split.part(source, part).invalid for part in PARTS), ())) == sorted(source.invalid)


def test_hash_split_counts_invalid_documents_where_they_belong(many, tmp_path):
    split = HashSplit(validation=0.2, test=0.1)
    intact = [names(split.part(many, part)) for part in PARTS]
    for i in range(0, 400, 40):
        (tmp_path / f"{i:03}.txt").write_bytes(b"\xff")
    source = TextFilesConfig((str(tmp_path),), invalid_utf8="replace").build()
    assert len(source.invalid) == 10
    damaged = [split.part(source, part).invalid for part in PARTS]
    assert sorted(sum(damaged, ())) == sorted(source.invalid)
    skipping = TextFilesConfig((str(tmp_path),), invalid_utf8="skip").build()
    for part, before, lost in zip(PARTS, intact, damaged, strict=True):
        assert set(before) - set(names(split.part(skipping, part))) == set(lost)


def test_hash_split_follows_sha256_of_the_name(many):
    split = HashSplit(validation=0.3, test=0.0)
    held_out = set(names(split.part(many, "validation")))
    for name in names(many):
        place = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12
        assert (name in held_out) == (place >= 0.7)


def test_range_split_cuts_at_characters_as_nanogpt_does(tmp_path):
    text = "".join(chr(97 + i % 26) if i % 10 else "é" for i in range(1117))
    (tmp_path / "input.txt").write_text(text)
    source = TextFilesConfig((str(tmp_path / "input.txt"),)).build()
    split = RangeSplit(validation=0.1)
    assert split.parts() == ("train", "validation")
    cut = int(len(text) * 0.9)
    assert [d.text for d in split.part(source, "train")] == [text[:cut]]
    assert [d.text for d in split.part(source, "validation")] == [text[cut:]]


def test_range_split_of_several_documents_loses_no_character(many):
    split = RangeSplit(validation=0.15, test=0.25)
    parts = [list(split.part(many, part)) for part in PARTS]
    everything = "".join(document.text for document in many)
    assert "".join(d.text for part in parts for d in part) == everything
    total = sum(len(d.text) for d in parts[2])
    assert abs(total - 0.25 * len(everything)) <= 1
    cut = [name for part in parts for name in names(part)]
    assert len(set(cut)) == len(cut) == 402


def test_separate_sources_give_each_part_its_own(tmp_path, many):
    (tmp_path.parent / "held.txt").write_text("held out")
    split = SeparateSources(validation=TextFilesConfig((str(tmp_path.parent / "held.txt"),)))
    assert split.parts() == ("train", "validation")
    assert split.part(many, "train") is many
    assert names(split.part(many, "validation")) == ["held.txt"]


@pytest.mark.parametrize(
    "split", [ContentSplit(0.1, 0.0), HashSplit(0.1, 0.0), RangeSplit(0.1, 0.0), SeparateSources()]
)
def test_a_part_that_the_split_does_not_have_is_refused(many, split):
    with pytest.raises(ValueError, match="has no test part, only train"):
        split.part(many, "test")


@pytest.mark.parametrize("kind", [ContentSplit, HashSplit, RangeSplit])
@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.1), (0.1, 1.2)])
def test_impossible_fractions_are_refused(kind, validation, test):
    with pytest.raises(ValueError, match="between 0 and 1|less than 1"):
        kind(validation=validation, test=test)


def test_digests_of_parts_differ_and_follow_the_source(many, tmp_path):
    def digests():
        source = TextFilesConfig((str(tmp_path),)).build()
        kinds = [ContentSplit(0.2, 0.1), HashSplit(0.2, 0.1), HashSplit(0.2, 0.2), RangeSplit(0.2, 0.1)]
        parts = [kind.part(source, part) for kind in kinds for part in ("train", "validation")]
        return [source.digest, Limited(source, 100).digest, Limited(source, 101).digest, *(p.digest for p in parts)]

    before = digests()
    assert len(set(before)) == len(before)
    assert digests() == before
    (tmp_path / "000.txt").write_text("changed")
    assert not set(digests()) & set(before)


def test_a_limited_sample_fills_the_budget_with_documents_of_which_the_last_by_hash_is_cut(many):
    texts = {document.name: document.text for document in many}
    sample = list(Limited(many, 1000))
    assert 1000 - 3 <= sum(len(document.text.encode()) for document in sample) <= 1000
    assert names(sample) == [name for name in texts if name in set(names(sample))]
    order = sorted(texts, key=lambda name: hashlib.sha256(name.encode()).digest()[:6])
    assert set(names(sample)) == set(order[: len(sample)])
    cut = [document for document in sample if document.text != texts[document.name]]
    assert [document.name for document in cut] == [order[len(sample) - 1]]
    assert texts[cut[0].name].startswith(cut[0].text)
    # A larger budget keeps what a smaller one had, and the sample is not simply the beginning.
    assert set(names(sample)) < set(names(Limited(many, 2000)))
    assert names(sample) != names(many)[: len(sample)]
    assert names(Limited(many, 10**9)) == names(many)


@pytest.mark.parametrize("sizes", [(10, 5000), (10, 995, 995), (400, 400, 400), (1000, 1), (999, 1, 1)])
def test_a_limited_sample_stops_at_no_document_that_does_not_fit(tmp_path, sizes):
    by_hash = sorted(map(str, range(len(sizes))), key=lambda name: hashlib.sha256(name.encode()).digest())
    for name, size in zip(by_hash, sizes, strict=True):
        (tmp_path / name).write_text("x" * size)
    sample = list(Limited(TextFilesConfig((str(tmp_path),)).build(), 1000))
    assert sum(len(document.text) for document in sample) == 1000


def test_a_limited_sample_of_one_long_document_is_its_beginning(tmp_path):
    (tmp_path / "a.txt").write_text("é" * 100)
    source = TextFilesConfig((str(tmp_path),)).build()
    assert [d.text for d in Limited(source, 25)] == ["é" * 12]
    with pytest.raises(ValueError, match="max_bytes is 0"):
        Limited(source, 0)


def test_a_sample_of_whole_documents_cuts_none(many):
    texts = {document.name: document.text for document in many}
    for limit in (1000, 2000):
        whole, cut = list(Limited(many, limit, whole=True)), list(Limited(many, limit))
        assert all(document.text == texts[document.name] for document in whole)
        assert len(whole) == len(cut) - 1 and sum(len(document.text.encode()) for document in whole) <= limit
    (only,) = Limited(many, 1, whole=True)
    assert only.text == texts[only.name] and len(only.text) > 1
    assert Limited(many, 1000, whole=True).digest != Limited(many, 1000).digest


def test_joined_is_one_source_after_the_other(many):
    joined = Joined([Limited(many, 50), Limited(many, 90)])
    assert names(joined) == names(Limited(many, 50)) + names(Limited(many, 90))
    assert joined.invalid == ()
