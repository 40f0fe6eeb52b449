"""Every record comes back once, whatever happened to other lines of the file."""

import json

import pytest

from llm_jax.core import records


def _record(kind, step, **values):
    return json.dumps({"kind": kind, "step": step, "time": 0.0} | values)


def test_records_pass_over_a_line_cut_by_a_crash(tmp_path):
    file = tmp_path / "metrics.jsonl"
    whole = _record("train", 2, loss=0.5)
    for cut in range(len(whole)):
        file.write_text(_record("train", 1, loss=1.0) + "\n" + whole[:cut])
        assert [record["step"] for record in records.read(file)[0]] == [1]
    file.write_text(_record("train", 1, loss=1.0) + "\n" + whole)
    assert [record["step"] for record in records.read(file)[0]] == [1, 2]


def test_of_a_repeated_step_the_last_written_counts_within_its_kind(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [
        _record("train", 1, loss=1.0),
        _record("train", 2, loss=2.0),
        _record("eval/validation", 2, loss=9.0),
        _record("train", 3, loss=3.0),
        _record("train", 2, loss=2.5),  # a resumed run goes over steps 2 and 3 again
        _record("eval/validation", 2, loss=9.5),
        _record("eval/test", 2, loss=8.0),
    ]
    file.write_text("\n".join(lines) + "\n")
    found = {(record["kind"], record["step"]): record["loss"] for record in records.read(file)[0]}
    assert found == {
        ("train", 1): 1.0,
        ("train", 2): 2.5,
        ("train", 3): 3.0,
        ("eval/validation", 2): 9.5,
        ("eval/test", 2): 8.0,
    }
    steps = [record["step"] for record in records.read(file)[0]]
    assert steps == sorted(steps) and len(steps) == 5


BAD = {
    "cut": '{"kind": "train", "st',
    "list": "[]",
    "number": "3",
    "null": "null",
    "no kind": '{"step": 2}',
    "kind of another type": '{"kind": 1, "step": 2}',
    "no step": '{"kind": "train"}',
    "step as text": '{"kind": "train", "step": "2"}',
    "step as truth": '{"kind": "train", "step": true}',
    "step as fraction": '{"kind": "train", "step": 2.5}',
    "negative step": '{"kind": "train", "step": -1}',
    "time as text": '{"kind": "train", "step": 2, "time": "now"}',
    "a number too long": '{"kind": "train", "step": 2, "loss": ' + "9" * 400 + "}",
    "a number longer than Python reads": '{"kind": "train", "step": 2, "loss": ' + "9" * 5000 + "}",
    "deep nesting": "[" * 100_000,
    "zeros": "\0" * 50,
    "not UTF-8": b"\xff\xfe",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_line_is_named_and_costs_no_other(tmp_path, bad):
    file, good = tmp_path / "metrics.jsonl", [_record("train", step, loss=1.0).encode() for step in (1, 3)]
    bad = bad if isinstance(bad, bytes) else bad.encode()
    file.write_bytes(b"\n".join([good[0], bad, good[1], b""]))
    found, damage = records.read(file)
    assert [record["step"] for record in found] == [1, 3]
    assert len(damage) == 1 and f"{file}, line 2, is not a record" in damage[0]


def test_a_last_line_cut_short_is_taken_away_and_a_whole_one_ended(tmp_path):
    file, whole = tmp_path / "metrics.jsonl", _record("train", 1, loss=1.0)
    for cut in range(len(whole)):
        file.write_text(whole + "\n" + whole[:cut])
        records.repair(file)
        assert file.read_text() == whole + "\n"
    file.write_text(whole)
    records.repair(file)
    assert file.read_text() == whole + "\n"
    records.repair(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_later_records_are_moved_and_nothing_is_lost(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [_record("train", 1), _record("train", 5), "damaged", _record("eval/validation", 2), _record("train", 9)]
    file.write_text("\n".join(lines) + "\n")
    later = records.split(file, 2)
    assert file.read_text().splitlines() == [lines[0], lines[2], lines[3]]
    assert later.read_text().splitlines() == [lines[1], lines[4]]
    assert records.split(file, 2) is None
    file.write_text(_record("train", 7) + "\n")
    assert records.split(file, 2) != later and later.read_text().splitlines() == [lines[1], lines[4]]
