"""`llm-jax generate` does what the kind of model in a folder of transformers can, as transformers does it."""

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_jax.interop import save_hf
from llm_jax.models.build import build
from llm_jax.models.families.bert import bert
from llm_jax.models.families.encoder import sequence_head
from llm_jax.models.families.llama import llama
from llm_jax.models.families.t5 import t5
from llm_jax.objectives import DenoisingConfig, SpanCorruptionConfig
from llm_jax.objectives.sequence_to_sequence import SequenceToSequenceConfig
from llm_jax.tokenizers import CharacterTokenizerConfig
from llm_jax.tokenizers.tokenizer import Frame
from llm_jax.trained_model import TrainedModel
from tests.helpers import tiny
from tests.helpers.command_line import llm_jax

LETTERS = CharacterTokenizerConfig().build(lambda: ["abcdefghijklmnopqrstuvwxyz "], Path(), "")
SIZES = {"heads": 2, "width": 16, "vocab_size": LETTERS.vocab_size, "max_length": 64}
PROMPT = "the red fox"


def _folder(path: Path, config) -> Path:
    model = build(config)
    save_hf(model, tiny.parameters(model, seed=1), path, tokenizer=LETTERS)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return _folder(tmp_path_factory.mktemp("pair") / "t5", t5(1, hidden=24, head_dim=8, tied=False, **SIZES))


@pytest.fixture(scope="module")
def theirs(pair):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(pair)
    ids = transformers.AutoTokenizer.from_pretrained(pair)(PROMPT, return_tensors="pt").input_ids
    return lambda **options: model.generate(ids, do_sample=False, max_new_tokens=8, **options)


def _text(row: list[int]) -> str:
    row = row[1:]  # without the start
    return LETTERS.continuation([], row[: row.index(LETTERS.eos_id)] if LETTERS.eos_id in row else row)


def test_an_encoder_decoder_writes_the_target_of_the_prompt(pair, theirs):
    outcome = llm_jax("generate", pair, "--prompt", PROMPT, "--new-tokens", 8, "--sampling.temperature", 0)
    assert outcome.code == 0, outcome.said
    assert outcome.out == _text(theirs()[0].tolist()) + "\n"
    assert len(set(outcome.out)) > 3


def test_beam_search_prints_the_best_hypotheses_and_their_scores(pair, theirs):
    words = ("generate", pair, "--prompt", PROMPT, "--new-tokens", 8, "--beams", 4, "--length-penalty", 2)
    found = theirs(
        num_beams=4, num_return_sequences=2, length_penalty=2.0, return_dict_in_generate=True, output_scores=True
    )
    first, second = (_text(row) for row in found.sequences.tolist())
    assert llm_jax(*words).out == first + "\n"
    scores = [f"{score:.4f}" for score in found.sequences_scores.tolist()]
    outcome = llm_jax(*words, "--n-best", 2)
    assert outcome.out == f"{scores[0]}\t{first}\n{scores[1]}\t{second}\n"


@pytest.mark.parametrize(
    ("objective", "start"),
    [
        (SpanCorruptionConfig(), 0),
        (DenoisingConfig(), LETTERS.eos_id),
        (DenoisingConfig(start_id=5), 5),
        (SequenceToSequenceConfig(), LETTERS.pad_id),
        (SequenceToSequenceConfig(start="bos"), LETTERS.bos_id),
    ],
)
def test_the_decoder_begins_as_in_training(objective, start):
    assert objective.decoder_start(LETTERS) == start


def test_a_source_has_the_prefix_of_its_objective():
    objective = SequenceToSequenceConfig(prefix="to german ")
    experiment: Any = types.SimpleNamespace(objective=objective)
    trained = TrainedModel(None, None, LETTERS, Frame(), (), experiment)
    assert trained.source("fox") == [*LETTERS.encode("to german fox"), LETTERS.eos_id]


def test_a_decoder_searches_a_continuation_of_the_prompt(tmp_path):
    folder = _folder(tmp_path / "llama", llama(1, hidden=24, **SIZES))
    outcome = llm_jax("generate", folder, "--prompt", PROMPT, "--new-tokens", 5, "--beams", 3)
    assert outcome.code == 0 and outcome.out.startswith(PROMPT), outcome.said
    assert len(outcome.out.rstrip("\n")) > len(PROMPT)


MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """BERT with words of its own."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    words = tokenizers.models.WordPiece({word: n for n, word in enumerate([*MARKS, "the", "fox", "##es", "runs"])})
    words.unk_token = "[UNK]"
    pipeline = tokenizers.Tokenizer(words)
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pipeline.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    model = build(bert(1, 2, 16, vocab_size=9, max_length=32))
    save_hf(model, tiny.parameters(model, seed=1), folder)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), MARKS, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=pipeline, **names).save_pretrained(folder)
    return folder


def test_an_encoder_fills_masks(encoder):
    import torch
    import transformers

    text = "the [MASK]es runs [MASK]"
    ids = transformers.AutoTokenizer.from_pretrained(encoder)(text)["input_ids"]
    assert TrainedModel.of(encoder).masked(text) == TrainedModel.of(encoder).masked(text.replace("[MASK]", "<mask>"))
    assert TrainedModel.of(encoder).masked(text) == ids
    outcome = llm_jax("generate", encoder, "--prompt", text, "--top", 2)
    assert outcome.code == 0, outcome.said
    with torch.no_grad():
        model = transformers.AutoModelForMaskedLM.from_pretrained(encoder)
        p_TV = model(torch.tensor([ids])).logits[0].softmax(-1).numpy()
    lines = outcome.out.splitlines()
    assert len(lines) == 2
    for line, at in zip(lines, np.flatnonzero(np.array(ids) == 4), strict=True):
        assert [part.split()[-1] for part in line.split("\t")] == [f"{p:.4f}" for p in np.sort(p_TV[at])[:-3:-1]]


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("encoder", ("--prompt", "the fox"), "--prompt has no <mask>, and the model"),
        ("encoder", ("--prompt", "<mask>", "--beams", 2), "fills masks in one pass: omit --new-tokens and the options"),
        ("encoder", ("--prompt", "<mask>", "--top", 0), "top is 0: it must be from 1 to"),
        ("pair", ("--prompt", "a", "--top", 2), "--top is of masks, and the model generates: omit it"),
        ("pair", ("--prompt", "a", "--length-penalty", 2), "--beams is 1: set --beams to 2 or more"),
        ("pair", ("--prompt", "a", "--beams", 2, "--sampling.top-k", 3), "beam search does not sample; omit one"),
        ("pair", ("--prompt", "a", "--beams", 2, "--n-best", 3), "n_best"),
        ("pair", ("--prompt", "a" * 70), "and the encoder's max_length is 64: shorten it"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(kind, words, message, request):
    outcome = llm_jax("generate", request.getfixturevalue(kind), *words)
    assert outcome.code != 0 and message in outcome.said and outcome.out == ""


def test_a_model_that_writes_no_text_is_refused_with_what_works(tmp_path):
    config = bert(1, 2, 16, vocab_size=LETTERS.vocab_size, max_length=32, head=sequence_head(3))
    folder = _folder(tmp_path / "classes", config)
    outcome = llm_jax("generate", folder, "--prompt", "a")
    assert outcome.code == 1 and "has a ClassHead and writes no text: `llm-jax convert" in outcome.said
    assert llm_jax("convert", folder, tmp_path / "again").code == 0


def test_the_help_has_an_example():
    said = llm_jax("generate", "-h").said
    assert 'Example: llm-jax generate runs/my_text --prompt "Once" --beams 4 --n-best 2' in said
    _, beam = said.split("beam options")
    assert all(option in beam for option in ("--beams", "--n-best", "--length-penalty", "--early-stopping"))
