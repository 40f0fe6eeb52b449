import gzip
import json

import pytest

from llm_jax.data.sources import ParallelTextConfig
from tests.helpers import shared_data


def source(folder, *names, **settings):
    return ParallelTextConfig(tuple((name, str(folder / name)) for name in names), **settings).build()


def read(*arguments, **settings):
    return [(d.name, json.loads(d.text)) for d in source(*arguments, **settings)]


def write(folder, **files):
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_lines_of_one_number_are_one_record(tmp_path):
    write(tmp_path, en=b"\xef\xbb\xbfone\r\n\n three \n", de="eins\nzw\u2028ei\ndrei".encode())
    assert read(tmp_path, "en", "de") == [
        ("en:1", {"en": "one", "de": "eins"}),
        ("en:2", {"en": "", "de": "zw\u2028ei"}),
        ("en:3", {"en": " three ", "de": "drei"}),
    ]
    assert list(read(tmp_path, "de", "en")[0][1]) == ["de", "en"]


@pytest.mark.parametrize("longer", [0, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_files_of_different_lengths_are_named_with_both_counts(tmp_path, longer, packed):
    lengths = [3, 3]
    lengths[longer] = 7
    suffix = ".gz" if packed else ""
    for name, length in zip(("en", "de"), lengths, strict=True):
        (tmp_path / f"{name}{suffix}").write_bytes((gzip.compress if packed else bytes)(b"x\n" * length))
    names = [f"en{suffix}", f"de{suffix}"]
    counts = f"different numbers of lines: .*{names[0]} has {lengths[0]}, .*{names[1]} has {lengths[1]};"
    with pytest.raises(ValueError, match=counts):
        read(tmp_path, *names)
    with pytest.raises(ValueError, match=counts):
        _ = source(tmp_path, *names).digest


def test_invalid_utf8_follows_the_policy(tmp_path):
    write(tmp_path, en=b"one\ntwo\n", de=b"eins\nzw\xff\n")
    with pytest.raises(ValueError, match=r"en:2 is not UTF-8: byte \d+ is 0xff"):
        read(tmp_path, "en", "de")
    assert read(tmp_path, "en", "de", invalid_utf8="skip") == [("en:1", {"en": "one", "de": "eins"})]
    assert read(tmp_path, "en", "de", invalid_utf8="replace")[1][1] == {"en": "two", "de": "zw�"}
    assert source(tmp_path, "en", "de", invalid_utf8="skip").invalid == ("en:2",)


@pytest.mark.parametrize("bad", ["en.gz", "de.gz"])
def test_the_file_that_is_damaged_is_named(tmp_path, bad):
    for name in ("en.gz", "de.gz"):
        data = gzip.compress(b"text\n" * 50)
        (tmp_path / name).write_bytes(data[:-9] if name == bad else data)
    with pytest.raises(ValueError, match=rf"cannot read .*{bad}"):
        read(tmp_path, "en.gz", "de.gz")


def test_missing_empty_and_ambiguous_files_are_named(tmp_path):
    write(tmp_path, en=b"", de=b"")
    with pytest.raises(ValueError, match=r"no file .*fr"):
        read(tmp_path, "en", "fr")
    with pytest.raises(ValueError, match=r"en, .*de are empty"):
        read(tmp_path, "en", "de")
    with pytest.raises(ValueError, match=r"matches 2 files: set the path"):
        read(tmp_path, "en", "*")


@pytest.mark.parametrize(
    "fields", [(), (("source", "a"),), (("x", "a"), ("x", "b")), (("", "a"), ("y", "b")), (("x", "a"), ("y", ""))]
)
def test_bad_fields_are_refused_when_the_config_is_made(fields):
    with pytest.raises(ValueError, match="fields is"):
        ParallelTextConfig(fields)


def test_the_digest_follows_every_file_and_the_names_of_the_fields(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, en=b"one\n", de=b"eins\n")
    before = source(tmp_path / "x", "en", "de").digest
    assert source(tmp_path / "y", "en", "de").digest == before != source(tmp_path / "y", "de", "en").digest
    named = ParallelTextConfig((("source", str(tmp_path / "x" / "en")), ("de", str(tmp_path / "x" / "de"))))
    assert named.build().digest != before
    (tmp_path / "y" / "de").write_bytes(b"zwei\n")
    assert source(tmp_path / "y", "en", "de").digest != before


def test_multi30k_is_aligned():
    folder = shared_data.folder("multi30k")
    for part, count in (("train", 29000), ("val", 1014), ("test_2016_flickr", 1000)):
        records = [record for _, record in read(folder, f"{part}.en.gz", f"{part}.de.gz")]
        assert len(records) == count
        for language in ("en", "de"):
            name = f"{part}.{language}.gz"
            lines = gzip.decompress((folder / name).read_bytes()).decode().split("\n")[:-1]
            assert [record[name] for record in records] == [line.removesuffix("\r") for line in lines]
