import gzip
import random
import re
import tracemalloc
from codecs import BOM_UTF8

import pytest

from llm_jax.data.sources import TextFilesConfig, text_files


def write(folder, **files: bytes):
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read(*paths, **settings):
    return [(d.name, d.text) for d in TextFilesConfig(tuple(map(str, paths)), **settings).build()]


def test_files_folders_and_globs_name_documents_by_their_place_in_the_corpus(tmp_path):
    write(tmp_path, a_txt=b"one", sub__b_txt=b"two", sub__deep__c_txt=b"three", sub__d_md=b"four")
    assert read(tmp_path / "a.txt") == [("a.txt", "one")]
    assert read(tmp_path) == [
        ("a.txt", "one"),
        ("sub/b.txt", "two"),
        ("sub/d.md", "four"),
        ("sub/deep/c.txt", "three"),
    ]
    assert read(tmp_path / "sub/**/*.txt") == [("b.txt", "two"), ("deep/c.txt", "three")]
    assert read(tmp_path / "s*/*.md", tmp_path / "a.txt") == [("sub/d.md", "four"), ("a.txt", "one")]


def test_a_file_whose_name_looks_like_a_glob_is_read_as_a_file(tmp_path):
    (tmp_path / "x[1].txt").write_text("plain")
    assert read(tmp_path / "x[1].txt") == [("x[1].txt", "plain")]


def test_a_folder_leaves_out_hidden_files(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("no")
    (tmp_path / "a.txt").write_text("yes")
    assert read(tmp_path) == [("a.txt", "yes")]


def test_gzip_and_line_endings_are_read_as_they_are(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("é\r\nx".encode()))
    assert read(tmp_path / "a.txt.gz") == [("a.txt.gz", "é\r\nx")]


def test_a_separator_cuts_a_file_into_numbered_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nlines\n\n\n\nthree")
    found = read(tmp_path / "a.txt", separator="\n\n")
    assert found == [("a.txt#0", "one"), ("a.txt#1", "two\nlines"), ("a.txt#2", "three")]


@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_separator_matches_line_ends_of_both_kinds(tmp_path, separator, line_end):
    text = "one\n\ntwo\nlines\n\n\n\nthree".replace("\n", line_end)
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert [text for _, text in read(tmp_path / "a.txt", separator=separator)] == [
        "one",
        f"two{line_end}lines",
        "three",
    ]
    (tmp_path / "a.txt").write_bytes(b"one\n\r\ntwo.")
    assert [text for _, text in read(tmp_path / "a.txt", separator=separator)] == ["one", "two."]


def test_a_byte_order_mark_is_no_text(tmp_path):
    write(tmp_path, a_txt=BOM_UTF8 + "é\ufeff".encode(), b_txt=BOM_UTF8 + b"one--" + BOM_UTF8 + b"two")
    assert [text for _, text in read(tmp_path, separator="--")] == ["é\ufeff", "one", "two"]
    write(tmp_path, c_txt=BOM_UTF8)
    with pytest.raises(ValueError, match=r"c\.txt is empty.*empty_files"):
        read(tmp_path)
    assert len(read(tmp_path, empty_files="skip")) == 2
    with pytest.raises(ValueError, match="byte 4 is 0xff"):
        write(tmp_path, a_txt=BOM_UTF8 + b"x\xff")
        read(tmp_path)


def test_a_byte_order_mark_changes_the_digest_by_what_it_changes_of_the_text(tmp_path):
    digests = []
    for data in (b"one", BOM_UTF8 + b"one", BOM_UTF8 + b"two"):
        write(tmp_path, a_txt=data)
        digests.append(TextFilesConfig((str(tmp_path / "a.txt"),)).build().digest)
    assert digests[0] == digests[1] != digests[2]


def test_digest_follows_names_and_bytes_but_not_the_folder(tmp_path):
    for folder in ("x", "y"):
        write(tmp_path / folder, a_txt=b"one", b_txt=b"two")

    def digest(folder, **settings):
        return TextFilesConfig((str(tmp_path / folder),), **settings).build().digest

    assert digest("x") == digest("y")
    assert digest("x") != digest("x", separator="n")
    before = digest("y")
    (tmp_path / "y" / "b.txt").write_bytes(b"twp")
    assert digest("y") != before
    (tmp_path / "y" / "b.txt").write_bytes(b"two")
    assert digest("y") == before
    (tmp_path / "y" / "b.txt").rename(tmp_path / "y" / "c.txt")
    assert digest("y") != before


def test_invalid_utf8_follows_the_stated_policy(tmp_path):
    write(tmp_path, a_txt=b"good", b_txt=b"ok \xff bad", c_txt=b"also good")
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8: byte 3 is 0xff.*invalid_utf8"):
        read(tmp_path)
    assert read(tmp_path, invalid_utf8="skip") == [("a.txt", "good"), ("c.txt", "also good")]
    assert read(tmp_path, invalid_utf8="replace")[1] == ("b.txt", "ok � bad")
    assert TextFilesConfig((str(tmp_path),), invalid_utf8="skip").build().invalid == ("b.txt",)


def test_a_missing_file_is_named_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"no file 'nowhere.txt' \(working directory {tmp_path}\)"):
        read("nowhere.txt")


def test_a_glob_without_a_match_is_named_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"glob 'corpus/\*\.txt' matches no file \(working directory {tmp_path}\)"):
        read("corpus/*.txt")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no files"):
        read(tmp_path)


def test_an_empty_file_is_an_error_unless_it_may_be_skipped(tmp_path):
    write(tmp_path, a_txt=b"", b_txt=b"text")
    with pytest.raises(ValueError, match=r"a\.txt is empty.*empty_files"):
        read(tmp_path)
    assert read(tmp_path, empty_files="skip") == [("b.txt", "text")]
    for separator in (None, "--"):
        assert TextFilesConfig((str(tmp_path),), separator, empty_files="skip").build().empty == 1


@pytest.mark.parametrize("given", ["file", "folder", "glob"])
def test_an_unreadable_file_is_named_and_never_passed_over(tmp_path, given):
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "good.txt").write_text("text")
    path = {"file": tmp_path / "broken.txt", "folder": tmp_path, "glob": tmp_path / "*.txt"}[given]
    with pytest.raises(ValueError, match=r"cannot read .*broken\.txt: No such file"):
        read(path)


def test_a_link_that_leads_to_itself_is_named(tmp_path):
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises(ValueError, match=r"cannot read .*loop\.txt: .*symbolic links"):
        read(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: b"not gzip at all", lambda data: data[:-9], lambda data: data[:12]])
def test_damaged_gzip_is_named(tmp_path, damage):
    (tmp_path / "a.txt.gz").write_bytes(damage(gzip.compress(b"some text" * 50)))
    with pytest.raises(ValueError, match=r"cannot read .*a\.txt\.gz"):
        read(tmp_path / "a.txt.gz")


@pytest.mark.parametrize(
    "settings",
    [{"paths": ()}, {"paths": "a.txt"}, {"separator": ""}, {"invalid_utf8": "ignore"}, {"empty_files": "no"}],
)
def test_bad_settings_are_refused_when_the_config_is_made(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TextFilesConfig(**{"paths": ("a.txt",), **settings})


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("separator", ["\n\n", "\n---\n", "<|end|>", "aab", "\n"])
def test_a_file_that_is_read_in_blocks_has_the_documents_of_the_whole(tmp_path, monkeypatch, block, separator):
    generator = random.Random(f"{block} {separator}")
    words = ["é", "a", "aa", "b", "\n", "\r\n", "\r", "---", "<|end|", ">", separator, separator[:-1], separator[1:]]
    text = "".join(generator.choices(words, k=400))
    (tmp_path / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr(text_files, "_BLOCK", block)
    pattern = "\r?\n".join(map(re.escape, separator.split("\n")))
    expected = [piece for piece in re.split(pattern, text) if piece]
    found = read(tmp_path / "a.txt", separator=separator)
    assert found == [(f"a.txt#{number}", piece) for number, piece in enumerate(expected)]


def test_a_file_with_a_separator_is_never_held_as_a_whole(tmp_path):
    with open(tmp_path / "a.txt", "wb") as file:
        for _ in range(64):
            file.write((b"x" * 999 + b"\n--\n") * 500)
    source = TextFilesConfig((str(tmp_path / "a.txt"),), separator="\n--\n").build()
    tracemalloc.start()
    try:
        assert sum(len(document.text) for document in source) == 64 * 500 * 999
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
