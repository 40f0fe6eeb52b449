import hashlib

import pytest

from llm_jax.data.sources import TextFilesConfig
from llm_jax.data.splits import HashSplit, Joined, Limited, RangeSplit, SeparateSources

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


@pytest.mark.parametrize("split", [HashSplit(0.1, 0.0), RangeSplit(0.1, 0.0), SeparateSources()])
def test_a_part_that_the_split_does_not_have_is_refused(many, split):
    with pytest.raises(ValueError, match="has no test part, only train"):
        split.part(many, "test")


@pytest.mark.parametrize("kind", [HashSplit, RangeSplit])
@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.1), (0.1, 1.2)])
def test_impossible_fractions_are_refused(kind, validation, test):
    with pytest.raises(ValueError, match="between 0 and 1|less than 1"):
        kind(validation=validation, test=test)


def test_digests_of_parts_differ_and_follow_the_source(many, tmp_path):
    def digests():
        source = TextFilesConfig((str(tmp_path),)).build()
        kinds = [HashSplit(0.2, 0.1), HashSplit(0.2, 0.2), RangeSplit(0.2, 0.1)]
        parts = [kind.part(source, part) for kind in kinds for part in ("train", "validation")]
        return [source.digest, Limited(source, 100).digest, Limited(source, 101).digest, *(p.digest for p in parts)]

    before = digests()
    assert len(set(before)) == len(before)
    assert digests() == before
    (tmp_path / "000.txt").write_text("changed")
    assert not set(digests()) & set(before)


def test_a_limited_sample_is_whole_documents_within_the_budget(many):
    sizes = {document.name: len(document.text.encode()) for document in many}
    sample = list(Limited(many, 1000))
    used = sum(sizes[document.name] for document in sample)
    assert [document.text for document in many if document.name in {d.name for d in sample}] == [d.text for d in sample]
    assert 1000 - max(sizes.values()) < used <= 1000
    # A larger budget keeps what a smaller one had, and the sample is not simply the beginning.
    assert set(names(sample)) < set(names(Limited(many, 2000)))
    assert names(sample) != names(many)[: len(sample)]
    assert names(Limited(many, 10**9)) == names(many)


def test_a_limited_sample_of_one_long_document_is_its_beginning(tmp_path):
    (tmp_path / "a.txt").write_text("é" * 100)
    source = TextFilesConfig((str(tmp_path),)).build()
    assert [d.text for d in Limited(source, 25)] == ["é" * 12]
    with pytest.raises(ValueError, match="max_bytes is 0"):
        Limited(source, 0)


def test_joined_is_one_source_after_the_other(many):
    joined = Joined([Limited(many, 50), Limited(many, 90)])
    assert names(joined) == names(Limited(many, 50)) + names(Limited(many, 90))
    assert joined.invalid == ()
