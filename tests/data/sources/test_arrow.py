import json

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pytest

from llm_jax.data.sources import ArrowConfig, ParquetConfig, arrow

WRITERS = {"stream": pyarrow.ipc.new_stream, "file": pyarrow.ipc.new_file}
TABLE = pyarrow.table(
    {
        "id": [2**53 + 1, None, -1],
        "text": ["é", "", None],
        "answers": [{"text": ["a", "b"], "start": [0, 1.5]}, {"text": [], "start": []}, None],
        "label": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
    }
)


def write(path, table, form="stream", rows=None):
    with pyarrow.OSFile(str(path), "wb") as file, WRITERS[form](file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def source(path, **settings):
    return ArrowConfig((str(path),), **settings).build()


def read(path, **settings):
    return [(d.name, d.text) for d in source(path, **settings)]


def not_utf8(kind):
    """A column of strings of which the second is not UTF-8."""
    column = pyarrow.array([b"fine", b"no\x80"], pyarrow.large_binary() if kind == pyarrow.large_string() else None)
    return pyarrow.Array.from_buffers(kind, 2, column.buffers())


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary()])
def test_rows_are_documents_in_order_over_all_files_and_batches(tmp_path, monkeypatch, form, kind):
    monkeypatch.setattr(arrow, "_ROWS_PER_READ", 64)
    column = pyarrow.array([f"é{i}".encode() for i in range(300)], pyarrow.binary()).cast(kind)
    write(tmp_path / "0.arrow", pyarrow.table({"text": column}), form, rows=200)
    write(tmp_path / "1.arrow", pyarrow.table({"text": ["last"]}), form)
    assert read(tmp_path) == [(f"0.arrow:{i}", f"é{i}") for i in range(300)] + [("1.arrow:0", "last")]


@pytest.mark.parametrize("form", WRITERS)
def test_whole_rows_are_exact(tmp_path, form):
    write(tmp_path / "a.arrow", TABLE, form)
    found = read(tmp_path / "a.arrow", field=None)
    assert [name for name, _ in found] == ["a.arrow:0", "a.arrow:1", "a.arrow:2"]
    assert (
        found[0][1] == '{"id":9007199254740993,"text":"é","answers":{"text":["a","b"],"start":[0.0,1.5]},"label":"x"}'
    )
    assert [json.loads(text) for _, text in found] == TABLE.to_pylist()


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_feather_files_are_arrow_files(tmp_path, compression):
    pyarrow.feather.write_feather(TABLE, tmp_path / "a.feather", compression=compression)
    assert [json.loads(text) for _, text in read(tmp_path / "a.feather", field=None)] == TABLE.to_pylist()


def test_a_parquet_file_of_the_same_rows_has_the_same_records_and_digest(tmp_path):
    for name in ("rows", "rows.arrow"):
        write(tmp_path / name, TABLE)
    records = source(tmp_path / "rows", field=None)
    found, digest = [d.text for d in records], records.digest
    pyarrow.parquet.write_table(TABLE, tmp_path / "rows")
    parquet = ParquetConfig((str(tmp_path / "rows"),), field=None).build()
    assert [d.text for d in parquet] == found and parquet.digest == digest
    assert source(tmp_path / "rows.arrow", field="label").digest != digest


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
@pytest.mark.parametrize("nested", [False, True])
def test_strings_that_are_not_utf8_follow_the_policy(tmp_path, kind, nested):
    column = not_utf8(kind)
    if nested:
        column = pyarrow.ListArray.from_arrays([0, 1, 2], pyarrow.StructArray.from_arrays([column], ["s"]))
    write(tmp_path / "a.arrow", pyarrow.table({"text": column}))
    for field in (None,) if nested else (None, "text"):
        with pytest.raises(ValueError, match=r"a\.arrow:1 is not UTF-8: byte \d+ is 0x80"):
            read(tmp_path / "a.arrow", field=field)
        assert [name for name, _ in read(tmp_path / "a.arrow", field=field, invalid_utf8="skip")] == ["a.arrow:0"]
        (_, _), (_, replaced) = read(tmp_path / "a.arrow", field=field, invalid_utf8="replace")
        assert "no�" in replaced


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([["é"], ["x", None]], pyarrow.list_(pyarrow.string())),
        pyarrow.array([["é"], ["x", None]], pyarrow.large_list(pyarrow.string())),
        pyarrow.array([["é"], ["x", None]], pyarrow.list_view(pyarrow.string())),
        pyarrow.array([["é"], ["x", None]], pyarrow.large_list_view(pyarrow.string())),
        pyarrow.array([["é", "b"], None], pyarrow.list_(pyarrow.string(), 2)),
        pyarrow.array([[("k", "é")], []], pyarrow.map_(pyarrow.string(), pyarrow.string())),
        pyarrow.array([[{"a": ["é"]}], None]),
        pyarrow.ListArray.from_arrays([0, 1, 2], pyarrow.array(["é", "b"]).dictionary_encode()),
        pyarrow.array(['["é"]', None], pyarrow.json_()),
    ],
    ids=lambda column: str(column.type),
)
def test_strings_at_every_depth_are_read(tmp_path, column):
    write(tmp_path / "a.arrow", pyarrow.table({"x": column}))
    expected = json.loads(json.dumps(column.to_pylist()))
    assert [json.loads(text)["x"] for _, text in read(tmp_path / "a.arrow", field=None)] == expected


def test_missing_columns_and_other_types_are_named(tmp_path):
    write(tmp_path / "a.arrow", pyarrow.table({"id": [1, 2], "text": ["x", None]}))
    with pytest.raises(ValueError, match=r"a\.arrow has no column 'txt'; did you mean 'text'\?; .*\['id', 'text'\]"):
        read(tmp_path / "a.arrow", field="txt")
    with pytest.raises(ValueError, match=r"a\.arrow: column 'id' holds int64, not text"):
        read(tmp_path / "a.arrow", field="id")
    with pytest.raises(ValueError, match=r"a\.arrow:1: column 'text' holds null"):
        read(tmp_path / "a.arrow")
    write(tmp_path / "b.arrow", pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], ["x", "x"]))
    with pytest.raises(ValueError, match=r"b\.arrow has columns of equal names, \['x', 'x'\]"):
        read(tmp_path / "b.arrow", field=None)
    with pytest.raises(ValueError, match="field is ''"):
        ArrowConfig(("a.arrow",), field="")


def test_a_number_that_is_not_finite_is_named_by_row_and_column(tmp_path):
    write(tmp_path / "a.arrow", pyarrow.table({"x": [1.0, float("nan")]}))
    with pytest.raises(ValueError, match=r"a\.arrow:1: field 'x' has no JSON"):
        read(tmp_path / "a.arrow", field=None)


@pytest.mark.parametrize("form", WRITERS)
def test_a_file_that_is_cut_anywhere_is_named(tmp_path, form):
    path = tmp_path / "a.arrow"
    write(path, TABLE, form, rows=1)
    data = path.read_bytes()
    for length in [*range(0, len(data), 41), *range(len(data) - 20, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cannot read .*a\.arrow"):
            read(path, field=None)


def test_offsets_that_lead_out_of_the_file_are_named(tmp_path):
    offsets = np.array([0, 2**30, 1], np.int32)
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, *map(pyarrow.py_buffer, (offsets, b"x"))])
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file:
        schema = pyarrow.schema([("text", pyarrow.string())])
        with pyarrow.ipc.new_stream(file, schema) as writer:
            writer.write_batch(pyarrow.RecordBatch.from_arrays([column], schema=schema))
    for field in (None, "text"):
        with pytest.raises(ValueError, match=r"cannot read .*a\.arrow"):
            read(tmp_path / "a.arrow", field=field)


def test_other_files_are_named(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"garbage" * 99)
    with pytest.raises(ValueError, match=r"cannot read .*a\.arrow.*complete Arrow file"):
        read(tmp_path / "a.arrow")
    with pytest.raises(ValueError, match=r"no file .*nowhere\.arrow"):
        read(tmp_path / "nowhere.arrow")
