"""The first token of every word has its tag, whatever the tokenizer, and the loss is that of the tagged tokens."""

import importlib.util

import jax
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.interop import load_hf
from llm_jax.models.build import build
from llm_jax.models.families.bert import bert
from llm_jax.models.families.encoder import sequence_head
from llm_jax.models.heads import ClassHead
from llm_jax.objectives.token_classification import TokenClassificationConfig
from llm_jax.tokenizers.boundaries import word_separator
from tests.helpers import tiny
from tests.helpers.made_rows import batch_of, reasons, rows_of
from tests.helpers.small_tokenizers import NAMES, tokenizer

T = 96
MODEL = bert(1, 2, 8, vocab_size=400, max_length=T, head=ClassHead(3))
BYTES = tokenizer("byte")
WORDS = ["Ada", "wrote", "programs", "in", "London", "."]
TAGS = [1, 0, 0, 0, 2, 0]
RECORD = {"tokens": WORDS, "tags": TAGS}
OBJECTIVE = TokenClassificationConfig()


@pytest.mark.parametrize("name", NAMES)
def test_the_first_token_of_each_word_has_its_tag(name):
    found = tokenizer(name)
    (row,) = rows_of(OBJECTIVE, MODEL, found, T, [RECORD], packed=False)
    length = int(row["segment_ids"].sum())
    (first,) = np.nonzero(row["loss_weights"])
    assert set(np.unique(row["loss_weights"])) == {0.0, 1.0} and row["labels"][first].tolist() == TAGS
    # From one first token up to the next, the tokens decode to one word.
    words = [found.decode(row["tokens"][a:b].tolist()) for a, b in zip(first, [*first[1:], length - 1], strict=True)]
    assert [word.strip() for word in words] == WORDS
    assert row["tokens"][0] == found.bos_id and first[0] == 1
    # And all of them together to the text of the words, as far as the decoder keeps it.
    text = found.decode(row["tokens"][1 : length - 1].tolist())
    assert text.replace(" ", "") == "".join(WORDS) and text.startswith("Ada wrote programs in London")


def test_words_are_separated_by_a_space_where_the_tokenizer_does_not_do_it():
    separators = {name: word_separator(tokenizer(name)) for name in NAMES}
    assert separators == {"byte": " ", "bpe": " ", "byte level": " ", "spaced": "", "word pieces": ""}


def test_a_record_that_is_too_long_keeps_its_first_words():
    (row,) = rows_of(OBJECTIVE, MODEL, BYTES, 12, [RECORD], packed=False)
    assert bytes(row["tokens"][1:11].tolist()) == b"Ada wrote " and row["loss_weights"].sum() == 3
    assert row["labels"][row["loss_weights"] > 0].tolist() == TAGS[:3]


def test_tags_are_numbers_or_names_and_others_are_reasons():
    named = TokenClassificationConfig(classes=("O", "PER", "LOC"))
    (row,) = rows_of(named, MODEL, BYTES, T, [RECORD | {"tags": ["PER", "O", 0, "O", "LOC", "O"]}], packed=False)
    assert row["labels"][row["loss_weights"] > 0].tolist() == TAGS
    for objective, change, reason in (
        (OBJECTIVE, {"tags": TAGS[:5]}, "field 'tokens' has 6 words and field 'tags' 5 tags"),
        (OBJECTIVE, {"tags": [3] * 6}, "label 3 is no class from 0 to 2"),
        (OBJECTIVE, {"tags": [-1] * 6}, "label -1 is no class from 0 to 2"),
        (OBJECTIVE, {"tags": ["O"] * 6}, "label 'O' is no class from 0 to 2"),
        (named, {"tags": ["B-PER"] * 6}, "label 'B-PER' is none of the classes O, PER, LOC"),
        (OBJECTIVE, {"tokens": [], "tags": []}, "field 'tokens' is empty"),
        (OBJECTIVE, {"tokens": "Ada wrote"}, "field 'tokens' holds a str, not a list"),
        (OBJECTIVE, {"tokens": [*WORDS[:5], " "]}, "word 5 is ' ', not a text with characters"),
        (OBJECTIVE, {"tokens": [*WORDS[:5], 7]}, "word 5 is 7, not a text with characters"),
    ):
        assert reasons(objective, MODEL, BYTES, T, RECORD | change) == [reason]
    assert "there is no field 'tags'" in reasons(OBJECTIVE, MODEL, BYTES, T, {"tokens": WORDS})[0]


def test_a_word_without_tokens_is_a_reason():
    # BERT's normaliser drops the zero width space.
    words = [*WORDS[:5], "\u200b"]
    assert reasons(OBJECTIVE, MODEL, tokenizer("word pieces"), T, RECORD | {"tokens": words}) == [
        "word 5 has no tokens"
    ]


def test_the_loss_is_the_mean_over_words_and_packing_changes_nothing():
    records = [RECORD, {"tokens": ["London", "ran"], "tags": [2, 0]}]
    model = build(MODEL)
    params = tiny.parameters(model)
    loss = jax.jit(lambda batch: OBJECTIVE.loss(model, params, batch))
    apart, packed = (batch_of(OBJECTIVE, MODEL, BYTES, T, records, packed) for packed in (False, True))
    assert apart.labels.shape == (2, T) and packed.labels.shape == (1, T)
    (total, metrics), (together, _) = loss(apart), loss(packed)
    logits = np.asarray(model.apply({"params": params}, apart.inputs).logits_BTV, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    at = np.nonzero(apart.weights)
    tags = np.array([*TAGS, 2, 0])
    nats = -log_p[*at, tags]
    assert float(total) == pytest.approx(nats.sum(), rel=1e-5) == pytest.approx(float(together), rel=1e-4)
    values = means(metrics)
    assert values["loss"] == pytest.approx(nats.mean(), rel=1e-5)
    assert values["accuracy"] == pytest.approx((log_p[at].argmax(axis=-1) == tags).mean())


def test_texts_for_a_tokenizer_are_the_words():
    assert list(OBJECTIVE.texts('{"tokens": ["a", "bc"], "tags": [0, 1]}')) == ["a bc"]
    assert list(OBJECTIVE.texts('{"tokens": 3}')) == list(OBJECTIVE.texts("[1]")) == []


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        (OBJECTIVE, tiny.tiny_llama(), "requires a bidirectional model"),
        (OBJECTIVE, bert(1, 2, 8, vocab_size=264, head=sequence_head(3)), "scores of each token, .* 'sequence'"),
        (OBJECTIVE, bert(1, 2, 8, vocab_size=264, head=ClassHead(1)), "tags need two classes at least"),
        (TokenClassificationConfig(classes=("a", "b")), MODEL, "has 2 names and model.head.classes is 3"),
    ],
)
def test_models_that_do_not_fit_are_refused(objective, model, message):
    with pytest.raises(ValueError, match=message):
        objective.check(model, T)


def test_the_examples_depend_on_fields_and_classes_alone():
    def identity(objective, length=T):
        return objective.examples(MODEL, BYTES, length).identity

    assert identity(OBJECTIVE) == identity(OBJECTIVE, 50)
    assert identity(OBJECTIVE) != identity(TokenClassificationConfig(tags="ner"))
    assert identity(OBJECTIVE) != identity(TokenClassificationConfig(classes=("O", "PER", "LOC")))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")), reason="needs transformers"
)
def test_the_loss_is_that_of_transformers(tmp_path):
    import torch
    import transformers

    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=400)
    torch.manual_seed(0)
    theirs = transformers.BertForTokenClassification(
        transformers.BertConfig(**sizes, num_labels=3, max_position_embeddings=T, initializer_range=0.3)
    ).eval()
    theirs.save_pretrained(tmp_path)
    model, params = load_hf(tmp_path)
    records = [RECORD, {"tokens": ["London", "ran"], "tags": [2, 0]}]
    batch = batch_of(OBJECTIVE, model.config, BYTES, T, records, packed=False)
    _, metrics = jax.jit(lambda batch: OBJECTIVE.loss(model, params, batch))(batch)
    given = {
        "input_ids": batch.inputs.tokens_BT,
        "attention_mask": batch.inputs.sequence.segment_ids_BT,
        "token_type_ids": batch.inputs.sequence.types_BT,
        "labels": np.where(batch.weights > 0, batch.labels, -100),
    }
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(array).long() for name, array in given.items()}).loss.item()
    assert means(metrics)["loss"] == pytest.approx(expected, rel=1e-5)
