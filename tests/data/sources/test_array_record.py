import json
from codecs import BOM_UTF8

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from llm_jax.data.sources import ArrayRecordConfig


def write(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def read(path, **settings):
    return [(d.name, d.text) for d in ArrayRecordConfig((str(path),), **settings).build()]


def test_records_are_documents_in_order_over_all_files(tmp_path):
    write(tmp_path / "x.array_record-1", [b"three"])
    write(tmp_path / "x.array_record-0", [f"é{i}".encode() for i in range(2500)])
    found = read(tmp_path / "x.array_record-*")
    assert found[:2] == [("x.array_record-0:0", "é0"), ("x.array_record-0:1", "é1")]
    assert found[2499:] == [("x.array_record-0:2499", "é2499"), ("x.array_record-1:0", "three")]


def test_a_json_field_can_hold_the_text(tmp_path):
    write(tmp_path / "x.array_record", [json.dumps({"body": "one"}).encode(), b'{"title": "two"}'])
    with pytest.raises(ValueError, match=r"x\.array_record:1: no field 'body'"):
        read(tmp_path / "x.array_record", field="body")


def test_invalid_utf8_names_the_record(tmp_path):
    write(tmp_path / "x.array_record", [b"fine", b"no\x80"])
    with pytest.raises(ValueError, match=r"x\.array_record:1 is not UTF-8: byte 2 is 0x80"):
        read(tmp_path / "x.array_record")
    assert read(tmp_path / "x.array_record", invalid_utf8="skip") == [("x.array_record:0", "fine")]


def test_text_that_is_no_text_follows_the_policies(tmp_path):
    path = tmp_path / "x.array_record"
    write(path, [BOM_UTF8 + b"one", b"", BOM_UTF8])
    assert read(path) == [("x.array_record:0", "one")]
    assert [text for _, text in read(path, empty="keep")] == ["one", "", ""]
    with pytest.raises(ValueError, match=r"x\.array_record:1: the text is empty"):
        read(path, empty="error")
    assert ArrayRecordConfig((str(path),)).build().empty == 2
    write(path, [BOM_UTF8 + b'{"body": "\\ud83d"}', b'{"body": ""}', b'{"body": "two"}'])
    assert read(path, field="body", invalid_utf8="skip") == [("x.array_record:2", "two")]
    with pytest.raises(ValueError, match=r"x\.array_record:0: .*lone surrogate U\+D83D"):
        read(path, field="body")


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"garbage" * 99, lambda data: data[: len(data) // 2]]
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "x.array_record"
    write(path, [b"text"] * 10)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"cannot read .*x\.array_record"):
        read(path)
