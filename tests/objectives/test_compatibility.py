"""Every valid pair of objective and architecture learns; the table says what the objectives say."""

import functools
import math

import jax
import numpy as np
import pytest

from llm_jax import objectives
from llm_jax.core.metrics import means
from llm_jax.data.record_examples import RecordExamples, StructuredRecord
from llm_jax.data.record_rows import row_of
from llm_jax.models.build import boxed_parameters, build
from llm_jax.objectives.compatibility import ARCHITECTURES, LENGTH, OBJECTIVES, pairs
from llm_jax.objectives.objective import Objective
from llm_jax.optim import AdamWConfig, Constant
from llm_jax.tokenizers import ByteTokenizerConfig
from llm_jax.train.state import initial_state
from llm_jax.train.step import StepConfig, train_step
from tests.helpers.command_line import llm_jax

BYTES = ByteTokenizerConfig().build(lambda: (), None, "")
VALID = [pair for pair in pairs() if pair.refusal is None]
STEPS = 300
"""At most; most pairs need 100."""

_REPLACED = 0.15 * 7 / 8 * 25 / 26
"""Share of the tokens that a generator replaces that reads nothing."""

BOUNDS = {
    "replaced tokens": 7 / 8 * 6 / 7 * math.log(26)
    - 50 * (_REPLACED * math.log(_REPLACED) + (1 - _REPLACED) * math.log(1 - _REPLACED)),
    "classification": math.log(2),
    "regression": 0.25,
    "token classification": math.log(2),
    "question answering": math.log(6),
    "sentence order": math.log(2),
    "contrastive": math.log(32),
    "fine-tuning": 6 / 7 * math.log(26),
}
"""What a model reaches that knows how often each target occurs and reads nothing: of equally likely classes, places or
rows the logarithm of their number; of a number that is 0 or 1 a squared error of 1/4; of answers of six letters and a
certain end, that of the letters. For all others it is at least the entropy of the letters."""


def _every_run():
    """Of each objective one architecture, and of each architecture one objective, are trained in every run."""
    objective, architecture = set(), set()
    for pair in VALID:
        new = pair.objective not in objective or pair.architecture not in architecture
        marks = () if new else pytest.mark.full(reason="the objective and the architecture are trained in every run")
        objective.add(pair.objective)
        architecture.add(pair.architecture)
        yield pytest.param(pair, id=f"{pair.objective}, {pair.architecture}", marks=marks)


def _text(draw):
    """A row of documents of two words, in which all letters follow from one of them."""
    tokens = []
    while len(tokens) <= LENGTH:
        letters = (97 + (draw.integers(26) + 5 * np.arange(6)) % 26).tolist()
        tokens += [BYTES.bos_id, *letters[:3], ord(" "), *letters[3:]]
    numbers = np.arange(LENGTH + 1)
    arrays = {"tokens": tokens[: LENGTH + 1], "segment_ids": numbers // 8 + 1, "positions": numbers % 8}
    return {name: np.array(array, np.int32) for name, array in arrays.items()}


def _record(draw):
    """A record in which everything follows from the first letter."""
    letter = draw.integers(26)
    word = "".join(chr(97 + (letter + 5 * i) % 26) for i in range(6))
    place = int(letter % 6)
    context = word[:place] + word[place].upper() + word[place + 1 :]
    return {
        "source": word,
        "target": word.upper(),
        "text": word,
        "pair": word.upper(),
        "label": int(letter % 2),
        "tokens": [word[:2], word[2:4], word[4:]],
        "tags": 3 * [int(letter % 2)],
        "question": "?",
        "context": context,
        "answers": {"text": [context[place]], "answer_start": [place]},
        "messages": [{"role": "user", "content": word[0]}, {"role": "assistant", "content": word}],
    }


def _batch(objective, model, draw, rows=32):
    examples = objective.examples(model, BYTES, LENGTH)
    if isinstance(examples, RecordExamples):
        made = [_of_record(examples, _record(draw), draw) for _ in range(rows)]
    else:
        made = []
        for _ in range(rows):
            row = _text(draw)
            if examples.changes_documents:
                document = examples.document(row["tokens"][:8], 0.0, draw)["tokens"][: LENGTH + 1]
                row["tokens"] = np.resize(document, LENGTH + 1)
            made.append(examples.row(row, draw))
    return objective.batch({name: np.stack([row[name] for row in made]) for name in made[0]})


def _of_record(examples, record, draw):
    (parts,) = examples.encode([StructuredRecord("r", record)], BYTES)
    document = examples.document(dict(zip(examples.parts, map(np.asarray, parts), strict=True)), draw)
    return examples.row(row_of(examples, [document]), draw)


@pytest.mark.parametrize("pair", _every_run())
def test_every_valid_pair_learns(pair):
    objective, config = OBJECTIVES[pair.objective], ARCHITECTURES[pair.architecture]()
    model, draw = build(config), np.random.default_rng(0)
    optimizer = AdamWConfig(peak_lr=3e-3, schedule=Constant(warmup_steps=10)).build(STEPS, boxed_parameters(model))
    state = jax.jit(functools.partial(initial_state, model, optimizer, 0, False))()
    step, losses = jax.jit(train_step(model, objective, optimizer, StepConfig(), 0)), []
    bound = BOUNDS.get(pair.objective, math.log(26))
    while len(losses) < STEPS and (len(losses) < 10 or np.mean(losses[-5:]) > 0.9 * bound):
        state, report = step(state, _batch(objective, config, draw))
        losses.append(means(report.metrics)["loss"])
    assert np.mean(losses[-5:]) <= 0.9 * bound, losses


def test_every_objective_of_the_package_has_a_row():
    exported = [
        value for value in vars(objectives).values() if isinstance(value, type) and issubclass(value, Objective)
    ]
    concrete = {value for value in exported if not getattr(value, "__abstractmethods__", None)}
    assert {type(config) for config in OBJECTIVES.values()} == concrete
    assert all(any(pair.objective == name for pair in VALID) for name in OBJECTIVES)
    assert all(any(pair.architecture == name for pair in VALID) for name in ARCHITECTURES)


def test_a_refusal_says_what_would_work():
    for pair in pairs():
        if pair.refusal is not None:
            assert any(word in pair.refusal for word in ("Config", "llm-jax objectives", "set ", "with_mask")), pair


def test_the_command_prints_the_table_and_the_reasons():
    outcome = llm_jax("objectives")
    assert outcome.code == 0 and all(name in outcome.said for name in ("masked diffusion", "MixtureOfDenoisersConfig"))
    outcome = llm_jax("objectives", "--why")
    lines = outcome.out.splitlines()
    assert len(lines) == len(OBJECTIVES) * len(ARCHITECTURES)
    assert "causal LM, decoder: yes" in lines
    reason = "masked LM, decoder: objective MaskedLMConfig requires a bidirectional model"
    assert any(line.startswith(reason) for line in lines)
