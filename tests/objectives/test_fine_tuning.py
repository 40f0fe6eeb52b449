"""The selected messages, and they alone, are predicted; conversations of a row do not see each other; a run learns."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import means
from llm_jax.core.run_directory import RunDirectory
from llm_jax.models.build import build
from llm_jax.models.families.bert import bert
from llm_jax.models.families.llama import llama
from llm_jax.objectives.chat_template import ChatML, ChatTemplate, PlainTemplate, Turn
from llm_jax.objectives.conversations import InstructionFields
from llm_jax.objectives.fine_tuning import FineTuningConfig
from tests.helpers import tiny
from tests.helpers.command_line import llm_jax
from tests.helpers.made_rows import batch_of, encoded, reasons, rows_of
from tests.helpers.small_tokenizers import NAMES, tokenizer

T = 256
MODEL = llama(1, 2, 8, hidden=16, vocab_size=400, max_length=T)
START, END = 399, 398
"""Ids of ChatML's tokens, which the byte tokenizer lacks."""
BYTES = tokenizer("byte")
CHAT = FineTuningConfig()


def conversation(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


LONG = conversation(
    ("system", "the fox"), ("user", "Where?"), ("assistant", "in London"), ("user", "the dog"), ("assistant", "Vienna")
)
SHORT = conversation(("user", "old tree"), ("assistant", "river"))


def shown(tokens):
    """Bytes with the special tokens written out."""
    names = {START: "<|im_start|>", END: "<|im_end|>", BYTES.bos_id: "<bos>", BYTES.eos_id: "<eos>"}
    return "".join(names[token] if token in names else chr(token) for token in tokens)


def chosen(objective, record, tokens=BYTES):
    """(all tokens of a conversation, runs of those that are predicted)."""
    (row,) = rows_of(objective, MODEL, tokens, T, [record], packed=True)
    real = row["segment_ids"] == 1
    assert not row["trained"][~real].any() and not row["tokens"][~real].any()
    edges = np.flatnonzero(np.diff([0, *row["trained"], 0]))
    return row["tokens"][real].tolist(), [row["tokens"][a:b].tolist() for a, b in zip(*[iter(edges)] * 2, strict=True)]


def test_a_conversation_is_that_of_chatml_and_answers_are_predicted_with_their_end():
    tokens, predicted = chosen(CHAT, SHORT)
    assert shown(tokens) == "<bos><|im_start|>user\nold tree<|im_end|>\n<|im_start|>assistant\nriver<|im_end|>\n"
    assert [shown(run) for run in predicted] == ["river<|im_end|>"]
    bare, _ = chosen(FineTuningConfig(template=ChatML(bos=False)), SHORT)
    assert bare == tokens[1:]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["in London", "Vienna"]),
        ({"last_only": True}, ["Vienna"]),
        ({"trained": ("user",)}, ["Where?", "the dog"]),
        ({"trained": ("user", "assistant")}, ["Where?", "in London", "the dog", "Vienna"]),
        ({"trained": ("system", "user"), "last_only": True}, ["the dog"]),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_the_selected_messages_are_predicted_whatever_the_tokenizer(name, fields, expected):
    found = tokenizer(name)
    tokens, predicted = chosen(FineTuningConfig(**fields), LONG, found)
    assert [run[-1] for run in predicted] == [END] * len(expected)
    assert [found.decode(run[:-1]).strip() for run in predicted] == expected
    assert tokens.count(START) == tokens.count(END) == 5 and tokens[0] == found.bos_id


def test_tokens_of_a_message_do_not_depend_on_what_stands_around_it():
    for name in NAMES:
        found = tokenizer(name)
        _, (run,) = chosen(CHAT, SHORT, found)
        assert run == [*found.encode("river"), END]


def test_special_tokens_of_the_tokenizer_are_used_and_others_are_the_last_of_the_model():
    library = pytest.importorskip("tokenizers", reason="the extra [hf] is not installed")
    from llm_jax.tokenizers.huggingface import HuggingFaceTokenizer

    model = library.Tokenizer.from_str(tokenizer("byte level").content.decode())
    model.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    own = HuggingFaceTokenizer(model.to_str().encode(), tokenizer("byte level").special)
    tokens, (run,) = chosen(CHAT, SHORT, own)
    start, end = (model.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    assert tokens.count(start) == tokens.count(end) == 2 and run[-1] == end
    # The name of a special token in a message is text.
    tokens, _ = chosen(CHAT, conversation(("user", "<|im_end|>"), ("assistant", "a")), own)
    assert tokens.count(end) == 2
    with pytest.raises(ValueError, match="none named <|im_start|>, <|im_end|>, and model.vocab_size is 260"):
        CHAT.examples(llama(1, 2, 8, hidden=16, vocab_size=260), BYTES, T)


ALPACA = """Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Add.

### Input:
1 and 2

### Response:3"""


def test_a_plain_conversation_is_alpacas_and_ends_with_eos():
    objective = FineTuningConfig(records=InstructionFields(), template=PlainTemplate())
    tokens, (predicted,) = chosen(objective, {"instruction": "Add.", "input": "1 and 2", "output": "3"})
    assert shown(tokens) == "<bos>" + ALPACA + "<eos>" and shown(predicted) == "3<eos>"
    for record in ({"instruction": "Add.", "input": "", "output": "3"}, {"instruction": "Add.", "output": "3"}):
        tokens, _ = chosen(objective, record)
        assert shown(tokens) == "<bos>" + ALPACA.replace("\n\n### Input:\n1 and 2", "") + "<eos>"
    ignored = FineTuningConfig(records=InstructionFields(input=None), template=PlainTemplate(preamble=""))
    tokens, _ = chosen(ignored, {"instruction": "Add.", "input": "1 and 2", "output": "3"})
    assert shown(tokens) == "<bos>### Instruction:\nAdd.\n\n### Response:3<eos>"


def test_a_system_takes_the_place_of_the_preamble():
    objective = FineTuningConfig(template=PlainTemplate())
    tokens, predicted = chosen(objective, LONG)
    text = "the fox\n\n### Instruction:\nWhere?\n\n### Response:in London<eos>"
    assert shown(tokens) == f"<bos>{text}### Instruction:\nthe dog\n\n### Response:Vienna<eos>"
    assert [shown(run) for run in predicted] == ["in London<eos>", "Vienna<eos>"]


def test_conversations_that_cannot_be_used_give_a_reason():
    def reason(record, objective=CHAT, length=T):
        (found,) = reasons(objective, MODEL, BYTES, length, record)
        return found

    assert "message 1 has the role 'asistant', which ChatML does not know; did you mean 'assistant'?; its roles" in (
        reason(conversation(("user", "a"), ("asistant", "b"), ("assistant", "c")))
    )
    assert reason(conversation(("user", "a"))) == "no message has a role of objective.trained, assistant"
    assert "message 1 of role 'assistant' is to be predicted and is empty" in (
        reason(conversation(("user", "a"), ("assistant", " ")))
    )
    # An earlier answer that is not predicted may be empty.
    empty = conversation(("user", "a"), ("assistant", ""), ("assistant", "b"))
    assert reason(empty, FineTuningConfig(last_only=True)) is None
    assert reason({"messages": []}) == "field 'messages' is empty"
    assert "holds a str, not a list" in reason({"messages": "a"})
    assert "message 0 is {'role': 'user'}, not an object with 'role' and 'content'" in (
        reason({"messages": [{"role": "user"}]})
    )
    assert "has role 'user' and content None: not texts" in reason({"messages": [{"role": "user", "content": None}]})
    assert "there is no field 'messages'" in reason({"text": "a"})
    alpaca = FineTuningConfig(records=InstructionFields())
    assert reason({"instruction": "a", "output": ""}, alpaca) == "field 'output' is empty"
    assert reason({"instruction": "a", "output": "b", "input": 3}, alpaca) == "field 'input' holds a int, not text"


def test_a_conversation_whose_answer_does_not_fit_is_a_reason():
    ((tokens, trained),) = encoded(CHAT, MODEL, BYTES, T, [SHORT])
    first = int(np.argmax(trained))
    (row,) = rows_of(CHAT, MODEL, BYTES, first, [SHORT], packed=True)  # of first + 1 tokens
    assert row["trained"].sum() == 1 and row["tokens"].tolist() == tokens[: first + 1].tolist()
    (reason,) = reasons(CHAT, MODEL, BYTES, first - 1, SHORT)
    assert f"token {first + 1} is the first that is predicted, and a row holds {first}" in reason


def test_what_is_cached_depends_on_all_that_decides_it():
    @configclass
    class Shouting(ChatML):
        def turn(self, role, first):
            return super().turn(role.upper(), first)

    variants = [
        CHAT,
        FineTuningConfig(last_only=True),
        FineTuningConfig(trained=("user",)),
        FineTuningConfig(template=PlainTemplate()),
        FineTuningConfig(template=ChatML(bos=False)),
        FineTuningConfig(template=Shouting()),
        FineTuningConfig(records=InstructionFields()),
    ]
    identities = [variant.examples(MODEL, BYTES, T).identity for variant in variants]
    identities += [
        CHAT.examples(MODEL, BYTES, T + 1).identity,
        CHAT.examples(llama(1, 2, 8, hidden=16, vocab_size=401), BYTES, T).identity,
    ]
    assert len(set(identities)) == len(identities)
    assert identities[0] == FineTuningConfig(z_loss=1e-4).examples(MODEL, BYTES, T).identity


def test_the_loss_is_the_mean_over_answers_and_packing_changes_nothing():
    model = build(MODEL)
    params = tiny.parameters(model)
    loss = jax.jit(lambda batch: CHAT.loss(model, params, batch))
    packed, apart = (batch_of(CHAT, MODEL, BYTES, T, [SHORT, SHORT], packing) for packing in (True, False))
    assert packed.targets_BT.shape == (1, T) and apart.targets_BT.shape == (2, T)
    (total, metrics), (together, _) = loss(apart), loss(packed)
    logits = np.asarray(model.apply({"params": params}, apart.inputs).logits_BTV, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    ((tokens, trained),) = encoded(CHAT, MODEL, BYTES, T, [SHORT])
    (at,) = np.nonzero(trained)
    nats = -log_p[0, at - 1, tokens[at]]
    assert float(total) == pytest.approx(2 * nats.sum(), rel=1e-5) == pytest.approx(float(together), rel=1e-4)
    assert means(metrics)["loss"] == pytest.approx(nats.mean(), rel=1e-5)
    assert float(metrics["loss"].count) == 2 * len("river.")


def test_an_answer_reads_what_stands_before_it_in_its_own_conversation():
    model = build(MODEL)
    params = tiny.parameters(model)
    other = conversation(("user", "fox"), ("assistant", "dog"))
    found = batch_of(CHAT, MODEL, BYTES, T, [SHORT, other], packed=True)
    segments = found.inputs.sequence.segment_ids_BT[0]
    (targets,) = np.nonzero(found.loss_weights_BT[0])

    def losses(x_BTE):
        inputs = found.inputs.replace(tokens_BT=None, features_BTE=x_BTE)
        log_p_TV = jax.nn.log_softmax(model.apply({"params": params}, inputs).logits_BTV[0])
        return log_p_TV[targets, found.targets_BT[0, targets]]

    x_BTE = jnp.asarray(np.random.default_rng(0).normal(size=(1, T, MODEL.width)), jnp.float32)
    reads = np.abs(jax.jit(jax.jacrev(losses))(x_BTE)[:, 0]).max(axis=-1) > 0
    assert len(targets) == len("river.") + len("dog.") and set(segments[targets]) == {1, 2}
    expected = (segments[targets, None] == segments[None]) & (np.arange(T) <= targets[:, None])
    np.testing.assert_array_equal(reads, expected)


def test_texts_for_a_tokenizer_are_those_of_the_messages_and_the_template():
    assert list(CHAT.texts(json.dumps(SHORT))) == ["user\n", "old tree", "\n", "assistant\n", "river", "\n"]
    assert list(CHAT.texts("[1]")) == list(CHAT.texts(json.dumps({"messages": 3}))) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trained": ()}, "objective.trained is empty"),
        ({"trained": ("asistant",)}, "role 'asistant', which ChatML does not know; did you mean 'assistant'"),
        ({"trained": ("tool",), "template": PlainTemplate()}, "'tool', which PlainTemplate does not know"),
    ],
)
def test_roles_that_the_template_does_not_know_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FineTuningConfig(**fields)


def test_encoders_are_refused():
    with pytest.raises(ValueError, match="requires a causal model"):
        CHAT.check(bert(1, 2, 8, vocab_size=400), T)


def test_a_template_of_ones_own():
    @configclass
    class Dialogue(ChatTemplate):
        roles = ("a", "b")

        def turn(self, role, first):
            return Turn((f"{role}: ",), ("\n",))

    objective = FineTuningConfig(template=Dialogue(bos=False), trained=("b",))
    tokens, predicted = chosen(objective, conversation(("a", "hi"), ("b", "ho")))
    assert shown(tokens) == "a: hi\nb: ho\n" and [shown(run) for run in predicted] == ["ho\n"]


FILE = '''"""Answers with the letter that follows."""

from pathlib import Path

from llm_jax.data import DataConfig, HashSplit, JsonLinesConfig
from llm_jax.data.structured_records import RecordsConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import Experiment
from llm_jax.models.families.llama import llama
from llm_jax.objectives.fine_tuning import FineTuningConfig
from llm_jax.optim import AdamWConfig, Constant
from llm_jax.tokenizers import ByteTokenizerConfig


def experiment():
    source = JsonLinesConfig((str(Path(__file__).parent / "letters.jsonl"),), field=None)
    records = RecordsConfig(source, HashSplit(0.1, 0.0), invalid="skip")
    return Experiment(
        name="letters",
        steps=60,
        tokenizer=ByteTokenizerConfig(),
        data=DataConfig(records, sequence_length=96, batch_size=8),
        model=llama(2, 4, 32, hidden=64, kv_heads=2, vocab_size=264, max_length=96),
        objective=FineTuningConfig(),
        optimizer=AdamWConfig(peak_lr=1e-2, schedule=Constant(warmup_steps=5)),
        evaluations=(PerplexityConfig(every=30),),
        log_every=1,
    )
'''


def test_a_run_learns_the_answers(tmp_path):
    draw = np.random.default_rng(0)
    records = []
    for _ in range(600):
        letter = draw.integers(8)
        # What the user writes cannot be predicted, and need not be.
        noise = "".join(draw.choice(list("ABCDEFGH"), 3))
        records.append(conversation(("user", noise + 6 * chr(97 + letter)), ("assistant", chr(98 + letter))))
    records.append(conversation(("user", "nobody answers")))
    (tmp_path / "letters.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "letters.py").write_text(FILE)
    outcome = llm_jax(
        "train", tmp_path / "letters.py", "--runs-dir", tmp_path / "runs", "--cache-dir", tmp_path / "cache"
    )
    assert outcome.code == 0, outcome.said
    run = RunDirectory(tmp_path / "runs" / "letters")
    losses = {record["step"]: record["loss"] for record in run.records() if record["kind"] == "train"}
    # Of a letter of eight and the certain end after it, a model that does not read has log(8) / 2 = 1.04 nats.
    assert losses[1] > 4 and np.mean([losses[step] for step in range(56, 61)]) < 0.6
    held_out = [record for record in run.records() if record["kind"] == "eval/validation"]
    assert held_out[-1]["loss"] < 0.6 and "bits_per_byte" not in held_out[-1]
    card = json.loads((run.path / "card.json").read_text())
    assert '"invalid": 1' in json.dumps(card)
