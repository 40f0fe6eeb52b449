import contextlib
import os
import re
import sqlite3
import time
import zlib

import pytest

from llm_jax.data import known_files
from llm_jax.data.sources import JsonLinesConfig, TextFilesConfig, corpus_files


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(known_files.FOLDER_VARIABLE, str(tmp_path / "known"))
    return tmp_path / "known"


@pytest.fixture
def reads(monkeypatch):
    """Files that sources have read to their end."""
    names = []
    original = corpus_files.opened

    @contextlib.contextmanager
    def counted(path):
        names.append(path.name)
        with original(path) as file:
            yield file

    monkeypatch.setattr(corpus_files, "opened", counted)
    return names


def settle():
    """Until a change would show in a file's times."""
    time.sleep(0.1)


def corpus(tmp_path, **texts):
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    settle()
    return lambda: TextFilesConfig((str(tmp_path / "*.txt"),)).build().digest


def test_a_file_is_read_once_and_again_only_when_it_changes(tmp_path, reads):
    digest = corpus(tmp_path, a="one", b="two")
    first = digest()
    assert sorted(reads) == ["a.txt", "b.txt"]
    assert digest() == first and len(reads) == 2
    # Same size, and the times put back: what restores a backup does as much.
    before = (tmp_path / "b.txt").stat()
    (tmp_path / "b.txt").write_text("TWO")
    os.utime(tmp_path / "b.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = digest()
    assert changed != first and reads[2:] == ["b.txt"]
    (tmp_path / "new").write_text("two")
    (tmp_path / "new").replace(tmp_path / "b.txt")
    assert digest() == first


def test_a_file_written_a_moment_ago_is_not_trusted_yet(tmp_path, reads):
    for _ in range(20):
        (tmp_path / "a.txt").write_text("one")
        one = TextFilesConfig((str(tmp_path / "a.txt"),)).build().digest
        (tmp_path / "a.txt").write_text("two")
        assert TextFilesConfig((str(tmp_path / "a.txt"),)).build().digest != one


def test_distrust_reads_everything_and_replaces_what_was_kept(tmp_path, folder, reads):
    digest = corpus(tmp_path, a="one")
    right = digest()
    (database,) = folder.iterdir()
    # What a bug or another tool could have left: a whole row with a wrong answer.
    with sqlite3.connect(database) as connection:
        row = list(connection.execute("select * from answers").fetchone())
        row[2] = re.sub("[0-7]", "8", row[2])
        row[3] = zlib.crc32("\0".join(row[:3]).encode())
        connection.execute("insert or replace into answers values (?, ?, ?, ?)", row)
    connection.close()
    assert digest() != right
    with known_files.distrusted():
        assert digest() == right
    assert digest() == right and len(reads) == 2


def overwrite(database):
    database.write_bytes(b"no database" * 500)


def flip_answer(database):
    data = bytearray(database.read_bytes())
    data[data.index(b'"content": "') + 15] ^= 1
    database.write_bytes(data)


@pytest.mark.parametrize("damage", [overwrite, flip_answer, lambda database: os.truncate(database, 3000)])
def test_damage_to_what_is_kept_is_never_believed(tmp_path, folder, reads, damage):
    digest = corpus(tmp_path, a="one")
    right = digest()
    (database,) = folder.iterdir()
    damage(database)
    assert digest() == right
    assert digest() == right
    assert digest() == right and len(reads) <= 3


def test_a_folder_that_cannot_be_used_costs_time_and_nothing_else(tmp_path, folder, reads):
    folder.write_text("a file")
    digest = corpus(tmp_path, a="one")
    assert digest() == digest() and reads == ["a.txt", "a.txt"]


def test_checksums_of_large_files_are_those_of_zlib(tmp_path):
    data = os.urandom(3 * 2**20 + 5)
    (tmp_path / "a").write_bytes(data)
    assert known_files.checksum(tmp_path / "a") == zlib.crc32(data)


def test_a_file_given_twice_counts_twice(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    path = str(tmp_path / "a.txt")
    assert TextFilesConfig((path, path)).build().digest != TextFilesConfig((path,)).build().digest


def test_names_that_are_no_unicode_are_known_as_well(tmp_path, reads):
    path = os.fsencode(tmp_path) + b"/a\xff.txt"
    with open(path, "w") as file:
        file.write("text")
    settle()
    source = TextFilesConfig((str(tmp_path / "*.txt"),))
    assert source.build().digest == source.build().digest
    assert len(reads) == 1


def test_what_is_not_unicode_is_counted_once(tmp_path, reads):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff"}\n{"text": "fine"}\n{"text": ""}\n')
    settle()
    config = JsonLinesConfig((str(tmp_path / "a.jsonl"),), invalid_utf8="skip")
    for _ in range(2):
        assert config.build().invalid == ("a.jsonl:1",) and config.build().empty == 1
    assert reads == ["a.jsonl"]
    with pytest.raises(ValueError, match="is not UTF-8"):
        _ = JsonLinesConfig((str(tmp_path / "a.jsonl"),)).build().digest
