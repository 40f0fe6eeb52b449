import gzip
import json
from codecs import BOM_UTF8

import pytest

from llm_jax.data.sources import JsonLinesConfig
from tests.helpers import shared_data


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
        (b'["text"]', r"a\.jsonl:2: a list where a JSON object with 'text' is required"),
        (b'{"test": "x", "id": 1}', r"a\.jsonl:2: no field 'text'; did you mean 'test'\?; .*\['id', 'test'\]"),
        (b'{"text": 3}', r"a\.jsonl:2: field 'text' holds a int, not text"),
        (b'{"text": "\xff"}', r"a\.jsonl:2 is not UTF-8: byte 10 is 0xff"),
        (b'{"text": "cut \\ud83d"}', r"a\.jsonl:2: .*lone surrogate U\+D83D at character 4.*invalid_utf8"),
        (b'{"text": "x", "nested": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", r"a\.jsonl:2: JSON nested deeper"),
        (b'{"text": ' + b"7" * 5000 + b"}", r"a\.jsonl:2: field 'text' holds a int, not text"),
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


def test_lone_surrogates_follow_the_policy_for_text_that_is_no_utf8(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a\\udc80\\ud83d"}\n{"text": "\\ud83d\\ude00", "id": "\\ud83d"}\n')
    assert read(path, invalid_utf8="skip") == [("a.jsonl:2", "😀")]
    assert read(path, invalid_utf8="replace") == [("a.jsonl:1", "a��"), ("a.jsonl:2", "😀")]
    assert JsonLinesConfig((str(path),), invalid_utf8="replace").build().invalid == ("a.jsonl:1",)


def test_a_number_of_any_length_beside_the_text_is_no_obstacle(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"id": ' + b"7" * 5000 + b', "at": 1e999999, "text": "x"}\n')
    assert read(tmp_path / "a.jsonl") == [("a.jsonl:1", "x")]


def test_empty_texts_follow_the_policy_and_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": ""}\n{"text": " "}\n{"text": "\\ufeff"}\n')
    assert read(path) == [("a.jsonl:2", " ")]
    assert read(path, empty="keep") == [("a.jsonl:1", ""), ("a.jsonl:2", " "), ("a.jsonl:3", "")]
    with pytest.raises(ValueError, match=r"a\.jsonl:1: the text is empty.*empty to 'skip' or 'keep'"):
        read(path, empty="error")
    sources = [JsonLinesConfig((str(path),), empty=empty).build() for empty in ("skip", "keep")]
    assert [source.empty for source in sources] == [2, 2] and len({source.digest for source in sources}) == 2
    with pytest.raises(ValueError, match="empty is 'drop'"):
        JsonLinesConfig((str(path),), empty="drop")


def test_a_byte_order_mark_is_no_text_in_whatever_line_it_comes(tmp_path):
    # As `cat` joins two files.
    (tmp_path / "a.jsonl").write_bytes(
        BOM_UTF8 + b'{"text": "one"}\r\n' + BOM_UTF8 + b'{"text": "\xef\xbb\xbftwo"}\r\n'
    )
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "one"}\n' + BOM_UTF8 + b"\n")
    assert read(tmp_path / "a.jsonl") == [("a.jsonl:1", "one"), ("a.jsonl:2", "two")]
    assert read(tmp_path / "b.jsonl") == [("b.jsonl:1", "one")]


def test_without_a_field_a_document_is_the_whole_object_in_canonical_form(tmp_path):
    line = '{ "b": 9007199254740993,\t"a": [1.50, -0.0, 1e-7, null, true],  "text": "tw\\u00f6 \\ud83d\\ude00"}'
    (tmp_path / "a.jsonl").write_text(f"{line}\n\n{{}}\n")
    text = '{"b":9007199254740993,"a":[1.5,-0.0,1e-07,null,true],"text":"twö 😀"}'
    assert read(tmp_path / "a.jsonl", field=None) == [("a.jsonl:1", text), ("a.jsonl:3", "{}")]
    (tmp_path / "b.jsonl").write_text(text)
    assert read(tmp_path / "b.jsonl", field=None) == [("b.jsonl:1", text)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"x": NaN}', "field 'x' has no JSON"),
        ('{"x": [1e999999]}', "field 'x' has no JSON"),
        ('{"x": ' + "7" * 5000 + "}", "a number that Python does not read"),
        ('{"x": 1', "broken JSON"),
        ("[1]", "a list where a JSON object is required"),
        ('{"x": ' + "[" * 10**5 + "]" * 10**5 + "}", "JSON nested deeper"),
        ('{"x": "cut \\ud83d"}', "lone surrogate U\\+D83D at character 10"),
    ],
)
def test_a_bad_object_is_named_by_file_and_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text("{}\n" + line)
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{message}"):
        read(tmp_path / "a.jsonl", field=None)


def test_objects_that_are_no_unicode_follow_the_policy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": "\\ud83d", "y": 1}\n{"x": "\xff"}\n{"x": 1}\n')
    assert read(path, field=None, invalid_utf8="skip") == [("a.jsonl:3", '{"x":1}')]
    replaced = [text for _, text in read(path, field=None, invalid_utf8="replace")]
    assert replaced == ['{"x":"�","y":1}', '{"x":"�"}', '{"x":1}']


def test_the_digest_of_a_text_is_that_of_earlier_versions(tmp_path):
    # Computed before readers had records: token caches stay valid.
    (tmp_path / "a.jsonl").write_bytes('{"text": "one", "id": 3}\n\n{"text":"zwö\\n"}\n{"text": ""}\n'.encode())
    settings = {"7e5c83b9d202bab6": {}, "aef735a42fad41d0": {"empty": "keep"}}
    settings |= {"ee4db300a4f2c29b": {"invalid_utf8": "replace"}}
    for digest, setting in settings.items():
        assert JsonLinesConfig((str(tmp_path / "a.jsonl"),), **setting).build().digest == digest
    assert JsonLinesConfig((str(tmp_path / "a.jsonl"),), field=None).build().digest not in settings


@pytest.mark.parametrize(
    ("path", "count", "fields"),
    [
        ("alpaca/alpaca_en_demo.jsonl.gz", 999, {"instruction", "input", "output"}),
        ("udhr/udhr.jsonl.gz", 387, {"lang", "text"}),
        ("preference-demo/dpo_en_demo.jsonl.gz", 300, {"conversations", "chosen", "rejected"}),
        ("preference-demo/kto_en_demo.jsonl.gz", 300, {"messages", "label"}),
    ],
)
def test_published_records_are_those_of_their_lines(path, count, fields):
    folder, name = path.split("/")
    path = shared_data.folder(folder) / name
    lines = gzip.decompress(path.read_bytes()).splitlines()
    records = [json.loads(text) for _, text in read(path, field=None)]
    assert len(records) == count and all(set(record) == fields for record in records)
    assert records == [json.loads(line) for line in lines]
