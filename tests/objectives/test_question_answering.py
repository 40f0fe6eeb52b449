"""The span of tokens decodes to the answer, whatever the tokenizer, and only tokens of the context are scored."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.interop import load_hf
from llm_jax.models.build import build
from llm_jax.models.families.bert import bert
from llm_jax.models.families.encoder import span_head
from llm_jax.models.heads import ClassHead
from llm_jax.objectives.question_answering import QuestionAnsweringConfig, best_spans, tokens_of
from tests.helpers import tiny
from tests.helpers.made_rows import batch_of, reasons, rows_of
from tests.helpers.small_tokenizers import NAMES, tokenizer

T = 128
MODEL = bert(1, 2, 8, vocab_size=400, max_length=T, head=span_head())
BYTES = tokenizer("byte")
OBJECTIVE = QuestionAnsweringConfig()
CONTEXT = "Ada Lovelace wrote the first program in London, and Zoë ran it."


def record(answer, context=CONTEXT, question="Where was Ada?", start=None):
    start = context.index(answer) if start is None else start
    return {"question": question, "context": context, "answers": {"text": [answer], "answer_start": [start]}}


def predicted(row, found):
    """The text of the span of a row."""
    return found.decode(row["tokens"][row["start"] : row["end"] + 1].tolist()).strip()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "word pieces"])
@pytest.mark.parametrize("answer", ["Ada", "Ada Lovelace", "in London", "London", "Zoë", "first program", "it."])
def test_the_span_decodes_to_the_answer(name, answer):
    found = tokenizer(name)
    (row,) = rows_of(OBJECTIVE, MODEL, found, T, [record(answer)], packed=True)
    text = predicted(row, found)
    # A token of which a part belongs to the answer is one of the answer's.
    assert answer in text and len(text) <= len(answer) + (1 if answer == "it." else 4)
    if name == "byte":
        assert text == answer


def test_the_span_is_that_of_word_pieces_of_the_original_text():
    found = tokenizer("word pieces")
    for answer in ("Ada", "Lovelace", "London", "first program"):
        # The normaliser drops the control character and collapses nothing: offsets are those of the given text.
        given = record(answer, context="\x07 " + CONTEXT)
        (row,) = rows_of(OBJECTIVE, MODEL, found, T, [given], packed=True)
        assert predicted(row, found) == answer


def test_a_sequence_is_question_and_context_and_the_context_alone_is_scored():
    (row,) = rows_of(OBJECTIVE, MODEL, BYTES, T, [record("b", "ab", "q?")], packed=True)
    separator = 399
    assert row["tokens"][:7].tolist() == [BYTES.bos_id, *b"q?", separator, *b"ab", separator]
    assert row["types"][:8].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert np.nonzero(row["candidates"])[0].tolist() == [4, 5] and (row["start"], row["end"]) == (5, 5)
    assert row["segment_ids"].sum() == 7


def test_a_character_of_several_tokens_belongs_to_its_span_as_a_whole():
    ids, starts = BYTES.encode_with_offsets("aë€b")
    assert starts == [0, 1, 1, 2, 2, 2, 3] and len(ids) == 7
    assert tokens_of(starts, 1, 2).tolist() == [1, 2] and tokens_of(starts, 1, 3).tolist() == [1, 5]
    assert tokens_of(starts, 3, 4).tolist() == [6, 6]


def test_white_space_at_the_ends_of_an_answer_is_none_of_it():
    first, second = rows_of(OBJECTIVE, MODEL, BYTES, T, [record("London"), record(" London")], packed=True)
    assert (first["start"], first["end"]) == (second["start"], second["end"])


def test_answers_that_are_none_are_reasons():
    def reason(objective=OBJECTIVE, **answers):
        (found,) = reasons(objective, MODEL, BYTES, T, record("Ada") | {"answers": answers})
        return found

    assert reason(text=["London"], answer_start=[3]) == (
        "answer 'London' is not at character 3 of the context, where ' Lovel' stands"
    )
    assert "is not at character 900 of the context, where ''" in reason(text=["London"], answer_start=[900])
    assert "starts at -6, which is no place" in reason(text=["ran it"], answer_start=[-6])
    assert "starts at '40'" in reason(text=["London"], answer_start=["40"])
    assert reason(text=[], answer_start=[]) == "there is no answer"
    assert reason(text=["Ada"], answer_start=[]) == "the answers have 1 texts and 0 starts"
    assert "an answer is ' '" in reason(text=[" "], answer_start=[3])
    assert "not an object with 'text' and 'answer_start'" in reason(text=["Ada"])
    assert reason(text="Ada", answer_start=0) is None
    assert reason(text=["Ada", "Ada"], answer_start=[0, 0]) is None
    overlapping = {"text": ["Ada Lovelace", "Lovelace wrote"], "answer_start": [0, 4]}
    assert "'Ada Lovelace' and 'Lovelace wrote' at characters 0 and 4 overlap: keep one" in reason(**overlapping)
    assert "are different spans" in reason(text=["Ada", "London"], answer_start=[0, 40])
    assert reason(QuestionAnsweringConfig(several="first"), **overlapping) is None
    assert reasons(OBJECTIVE, MODEL, BYTES, T, {"context": "a"}) != [None]


def test_of_several_answers_the_first_is_the_target():
    given = record("Ada") | {"answers": {"text": ["London", "Ada"], "answer_start": [40, 0]}}
    (row,) = rows_of(QuestionAnsweringConfig(several="first"), MODEL, BYTES, T, [given], packed=True)
    assert predicted(row, BYTES) == "London"


def test_an_answer_that_truncation_cuts_off_is_a_reason():
    room = len("Where was Ada?") + 3
    stop = CONTEXT.index("London") + len("London")
    # One byte more or less.
    assert reasons(OBJECTIVE, MODEL, BYTES, room + stop, record("London")) == [None]
    (row,) = rows_of(OBJECTIVE, MODEL, BYTES, room + stop, [record("London")], packed=True)
    assert predicted(row, BYTES) == "London" and row["tokens"][-1] == 399
    (reason,) = reasons(OBJECTIVE, MODEL, BYTES, room + stop - 1, record("London"))
    assert f"ends with token {stop} of the context, and a row of {room + stop - 1} tokens has room for {stop - 1}" in (
        reason
    )
    identities = {OBJECTIVE.examples(MODEL, BYTES, length).identity for length in (50, 60)}
    assert len(identities) == 2, "a longer row needs other reasons"


def test_a_text_that_the_tokenizer_changes_is_a_reason():
    found = tokenizer("spaced")
    (reason,) = reasons(OBJECTIVE, MODEL, found, T, record("b", "a\u2581b"))
    assert "the tokenizer changes the text at character 1, from '▁b' to ' b'" in reason


def test_the_predicted_span_is_the_best_of_all():
    draw = np.random.default_rng(0)
    starts, ends = draw.normal(size=(2, 50, 9)).astype(np.float32)
    starts[:, :2], ends[:, 7:] = -np.inf, -np.inf
    for start, end, s, e in zip(*map(np.asarray, best_spans(starts, ends)), starts, ends, strict=True):
        sums = {(i, j): s[i] + e[j] for i in range(9) for j in range(i, 9)}
        assert (int(start), int(end)) == max(sums, key=lambda pair: sums[pair])


def test_the_loss_is_the_mean_of_both_ends_over_the_context():
    records = [record("London"), record("Zoë", question="Who ran it?")]
    model = build(MODEL)
    params = tiny.parameters(model)
    batch = batch_of(OBJECTIVE, MODEL, BYTES, T, records, packed=True)
    empty = {name: array[None] for name, array in OBJECTIVE.examples(MODEL, BYTES, T).padding(T).items()}
    padded = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch, OBJECTIVE.batch(empty))
    gradient, metrics = jax.jit(jax.grad(lambda params: OBJECTIVE.loss(model, params, padded), has_aux=True))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    logits = np.asarray(model.apply({"params": params}, batch.inputs).logits_BTV, np.float64)
    nats, exact = [], []
    for row, answer in enumerate(("London", "Zoë")):
        (context,) = np.nonzero(batch.labels.candidates_BT[row])
        first = len(CONTEXT[: CONTEXT.index(answer)].encode())
        here = (first, first + len(answer.encode()) - 1)
        scores = logits[row, context]
        assert bytes(batch.inputs.tokens_BT[row, context].tolist()).decode() == CONTEXT
        log_p = scores - np.log(np.exp(scores).sum(axis=0))
        nats.append(-(log_p[here[0], 0] + log_p[here[1], 1]) / 2)
        sums = np.where(np.triu(np.ones((len(context),) * 2)), scores[:, :1] + scores[:, 1], -np.inf)
        exact.append(np.unravel_index(sums.argmax(), sums.shape) == here)
    values = means(metrics)
    assert values["loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert values["accuracy"] == np.all(exact, axis=-1).mean()


def test_a_model_that_knows_the_answer_is_right():
    batch = batch_of(OBJECTIVE, MODEL, BYTES, T, [record("London"), record("Zoë")], packed=True)
    spans = batch.labels
    scores = jnp.stack([jax.nn.one_hot(spans.start_B, T), jax.nn.one_hot(spans.end_B, T)], axis=-1) * 30
    # The largest scores of all are outside of the context.
    values = means(OBJECTIVE.losses(scores.at[:, 0].set(99.0), batch))
    assert values == {"loss": pytest.approx(0, abs=1e-6), "accuracy": 1.0}


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        (OBJECTIVE, tiny.tiny_llama(), "requires a bidirectional model"),
        (OBJECTIVE, bert(1, 2, 8, vocab_size=264, head=ClassHead(2)), "scores of each span, .* 'token'"),
    ],
)
def test_models_that_do_not_fit_are_refused(objective, model, message):
    with pytest.raises(ValueError, match=message):
        objective.check(model, T)


def test_fields_without_meaning_are_refused():
    with pytest.raises(ValueError, match="are both 'context'"):
        QuestionAnsweringConfig(question="context")
    with pytest.raises(ValueError, match="several is 'last'"):
        QuestionAnsweringConfig(several="last")  # type: ignore[arg-type]


def test_texts_for_a_tokenizer_are_question_and_context():
    assert list(OBJECTIVE.texts(json.dumps(record("Ada")))) == ["Where was Ada?", CONTEXT]


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")), reason="needs transformers"
)
def test_the_loss_is_that_of_transformers(tmp_path):
    import torch
    import transformers

    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=400)
    torch.manual_seed(0)
    theirs = transformers.BertForQuestionAnswering(
        transformers.BertConfig(**sizes, max_position_embeddings=T, initializer_range=0.3)
    ).eval()
    theirs.save_pretrained(tmp_path)
    model, params = load_hf(tmp_path)
    records = [record("London"), record("Zoë", question="Who ran it?")]
    batch = batch_of(OBJECTIVE, model.config, BYTES, T, records, packed=True)
    _, metrics = jax.jit(lambda batch: OBJECTIVE.loss(model, params, batch))(batch)
    # Theirs scores all tokens: here those outside of the context are excluded by their scores.
    outside = torch.tensor(~batch.labels.candidates_BT)
    theirs.qa_outputs.register_forward_hook(lambda *arguments: arguments[-1].masked_fill(outside[..., None], -1e9))
    given = {
        "input_ids": batch.inputs.tokens_BT,
        "attention_mask": batch.inputs.sequence.segment_ids_BT,
        "token_type_ids": batch.inputs.sequence.types_BT,
        "start_positions": batch.labels.start_B,
        "end_positions": batch.labels.end_B,
    }
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(array).long() for name, array in given.items()}).loss.item()
    assert means(metrics)["loss"] == pytest.approx(expected, rel=1e-5)
