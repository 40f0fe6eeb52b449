"""A tokenizer of a user's own: a run of it is trained, resumed, and read back from its directory alone."""

import json
import shutil
import sys

import pytest

from llm_jax.core.run_directory import RunDirectory
from tests.helpers import tiny_run
from tests.helpers.command_line import llm_jax

FILE = '''"""Words as tokens."""

import dataclasses
from pathlib import Path

from llm_jax.core.configclass import configclass
from llm_jax.tokenizers import Tokenizer, TokenizerConfig
from llm_jax.tokenizers.tokenizer import SpecialIds
from tests.helpers import tiny_run


@configclass
class WordsConfig(TokenizerConfig):
    """The words of the training text."""

    def build(self, documents, cache, key):
        return Words(sorted({word for text in documents() for word in text.split()}))


class Words(Tokenizer):
    """Ids 0..n-1 are the n words; then bos, eos, pad."""

    kind = "words"
    file_name = "words.txt"

    def __init__(self, words):
        size = len(words)
        super().__init__(size + 3, SpecialIds(bos=size, eos=size + 1, pad=size + 2), "\\n".join(words).encode())
        self.words = words

    @classmethod
    def from_content(cls, content, special, source):
        return cls(content.decode().splitlines())

    def encode(self, text):
        return [self.words.index(word) for word in text.split()]

    def _decode(self, ids):
        return " ".join(self.words[one] for one in ids if one < len(self.words))

    def pipeline(self):
        raise ValueError("transformers has no such tokenizer")


def experiment():
    return dataclasses.replace(tiny_run.experiment(Path(__file__).parent), tokenizer=WordsConfig())
'''


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    tiny_run.write_corpus(folder)
    (folder / "words.py").write_text(FILE)
    return folder


@pytest.fixture(scope="module")
def command(lab):
    return ("train", lab / "words.py", "--runs-dir", lab / "runs", "--cache-dir", lab / "cache")


@pytest.fixture(scope="module")
def run(lab, command):
    outcome = llm_jax(*command)
    assert outcome.code == 0, outcome.said
    return RunDirectory(lab / "runs" / "tiny")


def losses(run):
    return {record["step"]: record["loss"] for record in run.records() if record["kind"] == "train"}


def test_it_resumes(run, command):
    before = losses(run)
    assert llm_jax(*command, "--step", 10).code == 0
    assert run.card()["starts"][-1]["resumed_from"] == 10
    assert losses(run) == before and before[12] < before[1]


def test_it_generates_from_the_copy_of_its_file(run, lab, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "experiment_words", raising=False)
    assert json.loads((run.tokenizer / "tokenizer.json").read_text())["kind"] == "experiment_words.Words"
    moved = tmp_path / "moved"
    shutil.copytree(run.path, moved)
    outcome = llm_jax("generate", moved, "--prompt", "the red", "--new-tokens", 4)
    assert outcome.code == 0, outcome.said
    assert outcome.out.startswith("the red ") and set(outcome.out.split()) <= set(tiny_run.WORDS)
    assert "experiment_words" not in sys.modules
    shutil.rmtree(moved / "source")
    outcome = llm_jax("generate", moved, "--prompt", "the red")
    assert outcome.code == 1 and "is a experiment_words.WordsConfig, which cannot be imported" in outcome.said


def test_a_class_that_could_not_be_read_back_is_refused_before_training(lab, command):
    file = lab / "inside.py"
    inside = "        class Inner(Words):\n            kind = 'inner'\n\n        return Inner(sorted"
    file.write_text(FILE.replace("        return Words(sorted", inside))
    outcome = llm_jax("train", file, *command[2:], "--name", "inside")
    assert outcome.code == 1 and "Inner is defined inside a function" in outcome.said
    assert not (lab / "runs" / "inside" / "metrics.jsonl").exists()
