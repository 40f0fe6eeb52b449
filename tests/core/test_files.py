"""A file is there whole or not at all."""

import os

import pytest

from llm_jax.core.files import write_atomically


def test_the_last_content_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old " * 1000)
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_text_is_utf8_whatever_the_locale_and_bytes_are_as_they_are(tmp_path):
    write_atomically(tmp_path / "text", "日本語\r\n")
    assert (tmp_path / "text").read_bytes() == "日本語\r\n".encode()
    write_atomically(tmp_path / "bytes", b"\xff\r\n")
    assert (tmp_path / "bytes").read_bytes() == b"\xff\r\n"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch, failing, error):
    def fail(*_):
        raise error

    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(type(error)):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_others_may_read_it(tmp_path):
    # A temporary file is private by birth; a run directory is read by colleagues.
    write_atomically(tmp_path / "file", "x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
