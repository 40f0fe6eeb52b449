import csv
import gzip
import io
import json
from codecs import BOM_UTF8

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.data.sources import CsvConfig
from llm_jax.data.splits import ContentSplit
from tests.helpers import shared_data

SST2 = {"delimiter": "\t", "columns": ("sentence", "label"), "quoting": False}


def source(path, **settings):
    return CsvConfig((str(path),), **settings).build()


def read(path, **settings):
    return [(d.name, json.loads(d.text)) for d in source(path, **settings)]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_each_row_is_a_record_named_by_the_line_at_which_it_begins(tmp_path, name):
    data = 'text,label\n"one, ""two""\nthree",1\r\n\né,\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read(tmp_path / name) == [
        (f"{name}:2", {"text": 'one, "two"\nthree', "label": "1"}),
        (f"{name}:5", {"text": "é", "label": ""}),
    ]


CELLS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1))
def test_what_the_csv_module_writes_is_read_back_exactly(tmp_path_factory, rows):
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([("é", "b"), *rows])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(written.getvalue().encode())
    assert [tuple(record.values()) for _, record in read(path)] == rows


def test_without_quoting_a_quote_is_text_and_a_line_is_a_row(tmp_path):
    (tmp_path / "a.tsv").write_bytes('"oh , he said\t1\r\n\u2028no "end"\t0'.encode())
    assert read(tmp_path / "a.tsv", **SST2) == [
        ("a.tsv:1", {"sentence": '"oh , he said', "label": "1"}),
        ("a.tsv:2", {"sentence": '\u2028no "end"', "label": "0"}),
    ]


def test_a_field_is_text_like_that_of_other_readers(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,one\n2,\n3,no\xff\n")
    texts = source(tmp_path / "a.csv", field="text", invalid_utf8="replace")
    assert [(d.name, d.text) for d in texts] == [("a.csv:2", "one"), ("a.csv:4", "no�")]
    assert texts.empty == 1 and texts.invalid == ("a.csv:4",)
    with pytest.raises(ValueError, match=r"a\.csv:4 is not UTF-8: byte 2 is 0xff"):
        list(source(tmp_path / "a.csv", field="text"))


def test_bytes_that_are_not_utf8_follow_the_policy_in_whole_rows(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"no\xff\t1\nfine\t0\n")
    with pytest.raises(ValueError, match=r"a\.tsv:1 is not UTF-8: byte 15 is 0xff"):
        read(tmp_path / "a.tsv", **SST2)
    assert [name for name, _ in read(tmp_path / "a.tsv", invalid_utf8="skip", **SST2)] == ["a.tsv:2"]
    assert read(tmp_path / "a.tsv", invalid_utf8="replace", **SST2)[0][1] == {"sentence": "no�", "label": "1"}


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(BOM_UTF8 + b"text\nx\n")
    assert read(tmp_path / "a.csv") == [("a.csv:2", {"text": "x"})]


def test_a_value_may_be_longer_than_the_limit_of_the_csv_module(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert len(next(iter(source(tmp_path / "a.csv", field="text"))).text) == 200_000


@pytest.mark.parametrize("quoting", [True, False])
@pytest.mark.parametrize("row", ["1,2,3", "1", ",,"])
def test_a_row_with_another_number_of_values_is_named(tmp_path, quoting, row):
    (tmp_path / "a.csv").write_text(f"a,b\n1,2\n{row}\n")
    with pytest.raises(ValueError, match=r"a\.csv:3 has [13] values for the 2 columns \['a', 'b'\]: repair"):
        read(tmp_path / "a.csv", quoting=quoting)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b\n", "has no rows"),
        (b"a,a\n1,2\n", r"\['a', 'a'\] are no names of columns"),
        (b"a,\n1,2\n", r"\['a', ''\] are no names of columns"),
        (b'a,b\n1,2\n3,"open\n5,6\n', r"a\.csv:3: broken CSV \(unexpected end of data\).*quoting to False"),
        (b'a,b\n1,"x"y\n', r"a\.csv:2: broken CSV \(',' expected after '\"'\)"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, data, message):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.csv")


def test_a_truncated_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 50)[:-9])
    with pytest.raises(ValueError, match=r"cannot read .*a\.csv\.gz"):
        read(tmp_path / "a.csv.gz")
    with pytest.raises(ValueError, match=r"no file .*nowhere\.csv"):
        read(tmp_path / "nowhere.csv")


def test_a_column_that_is_not_there_is_named_with_a_similar_one(tmp_path):
    message = r"no column 'txt'; did you mean 'text'\?; the columns are \['id', 'text'\]"
    with pytest.raises(ValueError, match=f"columns: {message}"):
        CsvConfig(("a.csv",), columns=("id", "text"), field="txt")
    (tmp_path / "a.csv").write_text("id,text\n1,2\n")
    with pytest.raises(ValueError, match=rf"a\.csv: {message}"):
        read(tmp_path / "a.csv", field="txt")


@pytest.mark.parametrize(
    "settings",
    [
        {"delimiter": ""},
        {"delimiter": "::"},
        {"delimiter": '"'},
        {"columns": ()},
        {"columns": ("a", "a")},
        {"field": ""},
    ],
)
def test_bad_settings_are_refused_when_the_config_is_made(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CsvConfig(("a.csv",), **settings)


def test_the_digest_follows_the_rows_and_every_setting_that_reads_them(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text("1,2\n3,4\n")
    path = tmp_path / "x" / "a.csv"
    settings = [
        {},
        {"columns": ("a", "b")},
        {"columns": ("a", "c")},
        {"field": "1"},
        {"delimiter": ";"},
        {"quoting": False},
    ]
    digests = [source(path, **each).digest for each in settings]
    assert len({*digests}) == len(settings)
    assert source(tmp_path / "y" / "a.csv").digest == source(path).digest == digests[0]
    (tmp_path / "y" / "a.csv").write_text("1,2\n3,5\n")
    assert source(tmp_path / "y" / "a.csv").digest != digests[0]


def test_records_are_split_like_text(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(200)))
    parts = [
        list(ContentSplit(0.3, 0.2).part(source(tmp_path / "a.csv"), part)) for part in ("train", "validation", "test")
    ]
    assert sum(map(len, parts)) == 200 and all(parts)


def test_sst2_and_cola_have_their_published_numbers_of_rows_and_two_labels():
    sst2, cola = shared_data.folder("sst2"), shared_data.folder("cola")
    for path, count in ((sst2 / "train.tsv", 6920), (sst2 / "dev.tsv", 872)):
        records = [record for _, record in read(path, **SST2)]
        assert len(records) == count and {record["label"] for record in records} == {"0", "1"}
    columns = ("source", "label", "mark", "sentence")
    for name, count in (("in_domain_train.tsv", 8551), ("in_domain_dev.tsv", 527)):
        lines = (cola / name).read_text(encoding="utf-8").splitlines()
        records = [record for _, record in read(cola / name, delimiter="\t", columns=columns, quoting=False)]
        assert ["\t".join(record.values()) for record in records] == lines and len(records) == count
