import jax
import numpy as np
import pytest

from llm_jax.checkpoints.restore import restore_params
from llm_jax.models.build import abstract_parameters
from llm_jax.models.transformer import Transformer
from llm_jax.tokenizers import load_tokenizer
from tests.helpers.command_line import llm_jax

PROMPT = "the red fox"
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def generate(finished):
    words = ("generate", finished.path, "--prompt", PROMPT, "--new-tokens", NEW_TOKENS)
    return lambda *more: llm_jax(*words, *more)


def test_the_prompt_is_continued(generate):
    outcome = generate()
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(PROMPT) and len(outcome.out.strip()) > len(PROMPT)


def test_the_seed_decides_the_sample(generate):
    texts = [generate("--seed", seed).out for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_greedy_is_the_likeliest_token_of_a_forward_pass_without_cache(generate, finished):
    experiment, tokenizer = finished.experiment(), load_tokenizer(finished.tokenizer)
    model = Transformer(experiment.model, experiment.precision)
    shapes, _ = abstract_parameters(model)
    params = restore_params(finished.checkpoints.absolute(), shapes, tokenizer.digest, part="ema").state
    score, length = jax.jit(lambda tokens: model.apply({"params": params}, tokens).logits_BTV[0]), 64
    ids = experiment.prompt(tokenizer, PROMPT)
    start = len(ids)
    while len(ids) < start + NEW_TOKENS:
        padded = np.array([ids + [0] * (length - len(ids))], np.int32)  # causal: what comes after does not matter
        ids.append(int(np.argmax(np.asarray(score(padded))[len(ids) - 1])))
        if ids[-1] == tokenizer.eos_id:
            break
    outcome = generate("--sampling.temperature", 0)
    assert outcome.out == PROMPT + tokenizer.decode(np.array(ids[start:])) + "\n"


def test_relative_paths_work(finished, monkeypatch):
    monkeypatch.chdir(finished.path.parent)
    outcome = llm_jax("generate", finished.path.name, "--prompt", PROMPT, "--new-tokens", 2)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--step", 7), "has no checkpoint of step 7: choose one of [10, 12]"),
        (("--new-tokens", 100), "the model's max_length is 64"),
        (("--new-tokens", 0), "it must be at least 1"),
        (("--seed", -1), "seed is -1: a seed must be at least 0"),
        (("--sampling.top-p", 2), "it must be greater than 0 and at most 1"),
        (("--sampling.top-q", 2), "--sampling.top-p"),
    ],
)
def test_what_cannot_be_generated_is_refused(generate, words, message):
    outcome = generate(*words)
    assert outcome.code != 0
    assert message in outcome.said
    assert outcome.out == "", "something was printed before the options were checked"


def test_a_run_without_a_tokenizer_cannot_be_prompted(tmp_path):
    (tmp_path / "experiment.txt").write_text("")
    outcome = llm_jax("generate", tmp_path / "absent", "--prompt", "a")
    assert outcome.code != 0 and "is not a run directory" in outcome.said
