import gzip
import json

import pytest

from llm_jax.data.sources import JsonLinesConfig


def read(path, **settings):
    return [(d.name, d.text) for d in JsonLinesConfig((str(path),), **settings).build()]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_each_line_is_a_document_named_by_file_and_line(tmp_path, name):
    data = b'{"text": "one"}\n\n{"text": "tw\\u00f6\\n", "id": 3}\n'
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read(tmp_path / name) == [(f"{name}:1", "one"), (f"{name}:3", "twö\n")]


def test_another_field_is_another_text_and_another_digest(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"title": "t", "body": "b"}))
    assert read(tmp_path / "a.jsonl", field="title") == [("a.jsonl:1", "t")]
    assert read(tmp_path / "a.jsonl", field="body") == [("a.jsonl:1", "b")]
    digests = {JsonLinesConfig((str(tmp_path / "a.jsonl"),), field=f).build().digest for f in ("title", "body")}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"a\.jsonl:2: broken JSON \(Unterminated string.*, column 10\)"),
        (b'["text"]', r"a\.jsonl:2: a list where a JSON object with 'text' belongs"),
        (b'{"test": "x", "id": 1}', r"a\.jsonl:2: no field 'text'; did you mean 'test'\?; .*\['id', 'test'\]"),
        (b'{"text": 3}', r"a\.jsonl:2: field 'text' holds a int, not text"),
        (b'{"text": "\xff"}', r"a\.jsonl:2 is not UTF-8: byte 10 is 0xff"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.jsonl")


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"a\.jsonl is empty"):
        read(tmp_path / "a.jsonl")


def test_invalid_lines_can_be_skipped_and_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff"}\n{"text": "fine"}\n')
    assert read(tmp_path / "a.jsonl", invalid_utf8="skip") == [("a.jsonl:2", "fine")]
    assert read(tmp_path / "a.jsonl", invalid_utf8="replace")[0] == ("a.jsonl:1", "�")
    source = JsonLinesConfig((str(tmp_path / "a.jsonl"),), invalid_utf8="skip").build()
    assert source.invalid == ("a.jsonl:1",)
