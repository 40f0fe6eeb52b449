import gzip
import json

import pytest

from llm_jax.data.sources import SquadConfig
from tests.helpers import shared_data

QUESTIONS = [
    {"id": "q1", "question": "Who?", "answers": [{"text": "é", "answer_start": 2}, {"text": "b", "answer_start": 4}]},
    {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "no"}]},
]
SET = {
    "version": "2.0",
    "data": [
        {"title": "T", "paragraphs": [{"context": "a é b", "qas": QUESTIONS}]},
        {"title": "U", "paragraphs": [{"context": "c", "qas": []}, {"context": "d", "qas": QUESTIONS[1:]}]},
    ],
}


def source(path, **settings):
    return SquadConfig((str(path),), **settings).build()


def read(path, **settings):
    return [(d.name, json.loads(d.text)) for d in source(path, **settings)]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_each_question_is_a_record_with_its_context(tmp_path, name):
    data = json.dumps(SET).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    why = {"id": "q2", "question": "Why?", "answers": {"text": [], "answer_start": []}}
    assert read(tmp_path / name) == [
        (
            f"{name}:0",
            {
                "id": "q1",
                "question": "Who?",
                "context": "a é b",
                "answers": {"text": ["é", "b"], "answer_start": [2, 4]},
            },
        ),
        (f"{name}:1", {**why, "context": "a é b"}),
        (f"{name}:2", {**why, "context": "d"}),
    ]


def changed(change):
    copy = json.loads(json.dumps(SET))
    change(copy)
    return json.dumps(copy)


def question(copy):
    return copy["data"][0]["paragraphs"][0]["qas"][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.json: broken JSON"),
        (json.dumps(SET)[:-9], r"a\.json: broken JSON"),
        ("[" * 10**5, r"a\.json: broken JSON"),
        ("[]", r"a\.json: a list where an object with 'data' is required"),
        ('{"data": []}', r"a\.json has no questions"),
        ('{"date": []}', r"a\.json: no 'data'; did you mean 'date'\?; there are \['date'\]"),
        (changed(lambda s: question(s).pop("answers")), r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: no 'answers'"),
        (changed(lambda s: question(s).update(id=7)), r"qas\[0\]: 'id' is a int, not a str"),
        (changed(lambda s: question(s).update(answers=["é"])), r"answers: a str where an object with 'text'"),
        (changed(lambda s: question(s)["answers"][0].update(answer_start="2")), r"'answer_start' is a str, not a int"),
        (changed(lambda s: question(s)["answers"][0].update(answer_start=True)), r"'answer_start' is a bool"),
    ],
)
def test_a_file_of_another_form_is_named_with_the_place(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.json")


def test_damaged_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(SET).encode())[:-9])
    with pytest.raises(ValueError, match=r"cannot read .*a\.json\.gz"):
        read(tmp_path / "a.json.gz")
    with pytest.raises(ValueError, match=r"no file .*nowhere\.json"):
        read(tmp_path / "nowhere.json")


@pytest.mark.parametrize("damage", [b"Wh\xff?", b"Wh\\ud83d?"])
def test_only_the_question_that_is_no_unicode_follows_the_policy(tmp_path, damage):
    (tmp_path / "a.json").write_bytes(json.dumps(SET).encode().replace(b"Who?", damage))
    with pytest.raises(ValueError, match=r"a\.json: data\[0\]\.paragraphs\[0\]\.qas\[0\] is not UTF-8"):
        read(tmp_path / "a.json")
    assert [name for name, _ in read(tmp_path / "a.json", invalid_utf8="skip")] == ["a.json:1", "a.json:2"]
    assert "�" in read(tmp_path / "a.json", invalid_utf8="replace")[0][1]["question"]
    assert source(tmp_path / "a.json", invalid_utf8="skip").invalid == ("a.json:0",)


def test_the_digest_follows_the_records_and_not_the_form_of_the_file(tmp_path):
    digests = []
    for number, text in enumerate(
        (json.dumps(SET), json.dumps(SET, indent=1), changed(lambda s: question(s).update(question="Where?")))
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.json").write_text(text)
        digests.append(source(tmp_path / str(number) / "a.json").digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("language", ["en", "de", "es", "zh"])
def test_xquad_answers_stand_in_their_contexts(language):
    records = [record for _, record in read(shared_data.folder("xquad") / f"xquad_a.{language}.json.gz")]
    assert len({record["id"] for record in records}) == len(records) == 925
    for record in records:
        for text, start in zip(record["answers"]["text"], record["answers"]["answer_start"], strict=True):
            assert record["context"][start:].startswith(text)
