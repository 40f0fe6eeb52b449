import json

import pyarrow
import pyarrow.parquet
import pytest

from llm_jax.data.sources import ParquetConfig


def write(path, column, **settings):
    ids = pyarrow.array(range(len(column)))
    pyarrow.parquet.write_table(pyarrow.table({"id": ids, "text": column}), path, **settings)


def read(path, **settings):
    return [(d.name, d.text) for d in ParquetConfig((str(path),), **settings).build()]


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), pyarrow.large_binary()]
)
@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_rows_are_documents_in_order_over_all_files_and_row_groups(tmp_path, kind, compression):
    texts = [f"é{i}".encode() for i in range(2500)]
    column = pyarrow.array(texts, pyarrow.binary()).cast(kind)
    write(tmp_path / "0.parquet", column, compression=compression, row_group_size=1500)
    write(tmp_path / "1.parquet", pyarrow.array(["last"]))
    expected = [(f"0.parquet:{i}", f"é{i}") for i in range(2500)] + [("1.parquet:0", "last")]
    assert read(tmp_path) == expected


def test_dictionaries_are_read_as_their_values(tmp_path):
    write(tmp_path / "a.parquet", pyarrow.array(["x", "y", "x"]).dictionary_encode())
    assert [text for _, text in read(tmp_path / "a.parquet")] == ["x", "y", "x"]


def test_missing_columns_and_other_types_are_named(tmp_path):
    write(tmp_path / "a.parquet", pyarrow.array(["x"]))
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'txt'; did you mean 'text'\?; .*\['id', 'text'\]"):
        read(tmp_path / "a.parquet", field="txt")
    with pytest.raises(ValueError, match=r"a\.parquet: column 'id' holds int64, not text"):
        read(tmp_path / "a.parquet", field="id")
    write(tmp_path / "b.parquet", pyarrow.array(["x", None]))
    with pytest.raises(ValueError, match=r"b\.parquet:1: column 'text' holds null"):
        read(tmp_path / "b.parquet")


def test_invalid_utf8_names_the_row(tmp_path):
    write(tmp_path / "a.parquet", pyarrow.array([b"fine", b"no\x80"]))
    with pytest.raises(ValueError, match=r"a\.parquet:1 is not UTF-8: byte 2 is 0x80"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", invalid_utf8="skip") == [("a.parquet:0", "fine")]


def test_empty_texts_follow_the_stated_policy(tmp_path):
    write(tmp_path / "a.parquet", pyarrow.array(["", "x"]))
    assert read(tmp_path / "a.parquet") == [("a.parquet:1", "x")]
    assert read(tmp_path / "a.parquet", empty="keep") == [("a.parquet:0", ""), ("a.parquet:1", "x")]
    assert ParquetConfig((str(tmp_path / "a.parquet"),)).build().empty == 1
    with pytest.raises(ValueError, match=r"a\.parquet:0: the text is empty"):
        read(tmp_path / "a.parquet", empty="error")


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: b"garbage" * 99, lambda d: d[: len(d) // 2], flipped])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "a.parquet"
    text = "".join(chr(97 + i * i % 23) for i in range(3000))
    write(path, pyarrow.array([text]), write_page_checksum=True, use_dictionary=False, compression="none")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"cannot read .*a\.parquet"):
        read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no file .*nowhere.parquet"):
        read(tmp_path / "nowhere.parquet")


def test_text_that_is_no_text_follows_the_policies(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, pyarrow.array(["\ufeffone", "", "\ufeff"]))
    assert read(path) == [("a.parquet:0", "one")]
    assert [text for _, text in read(path, empty="keep")] == ["one", "", ""]
    with pytest.raises(ValueError, match=r"a\.parquet:1: the text is empty"):
        read(path, empty="error")
    assert ParquetConfig((str(path),)).build().empty == 2


def test_without_a_field_a_document_is_the_whole_row(tmp_path):
    rows = [
        {"id": 2**53 + 1, "text": "é", "messages": [{"role": "user", "content": "a"}], "score": 0.1},
        {"id": None, "text": "", "messages": [], "score": -0.0},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", field=None)
    assert [name for name, _ in found] == ["a.parquet:0", "a.parquet:1"]
    assert [repr(json.loads(text)) for _, text in found] == [repr(row) for row in rows]
    write(tmp_path / "b.parquet", pyarrow.array([b"fine", b"no\x80"]))
    with pytest.raises(ValueError, match=r"b\.parquet:1 is not UTF-8: byte 18 is 0x80"):
        read(tmp_path / "b.parquet", field=None)
    assert read(tmp_path / "b.parquet", field=None, invalid_utf8="replace")[1][1] == '{"id":1,"text":"no�"}'


def test_the_digest_of_a_text_is_that_of_earlier_versions(tmp_path):
    # Computed before readers had records: token caches stay valid.
    write(tmp_path / "a.parquet", pyarrow.array(["one", "zwö\n", ""]))
    settings = {"4bc302d66d71c185": {}, "8988cc2668e82df1": {"empty": "keep"}}
    settings |= {"136164a101f2a041": {"invalid_utf8": "replace"}}
    for digest, setting in settings.items():
        assert ParquetConfig((str(tmp_path / "a.parquet"),), **setting).build().digest == digest
    assert ParquetConfig((str(tmp_path / "a.parquet"),), field=None).build().digest not in settings
