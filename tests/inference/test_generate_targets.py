"""An encoder-decoder writes the same targets with a cache as without one, and as transformers does."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import build
from llm_jax.models.config import EncoderDecoderConfig
from llm_jax.models.heads import HeadConfig
from llm_jax.models.inputs import Inputs
from tests.helpers import tiny
from tests.helpers.published import PAIRS, PUBLISHED

GREEDY = SamplingConfig(temperature=0.0)
PAD = 0
SOURCES = [[5], [7, 3, 9, 21, 30], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [30, 30]]
NEW = 7


def _untied(config: EncoderDecoderConfig) -> EncoderDecoderConfig:
    """With a head of its own: with random weights a tied one repeats the token that it reads."""
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, head=HeadConfig()))


CONFIGS = {"umt5": PAIRS["umt5"], "bart": _untied(PAIRS["bart"]), "switch": PAIRS["switch"]}
STARTS = {"umt5": (0,), "bart": (2, 11), "switch": (0,)}


class Case:
    """A model with weights, a greedy generator, and the same by the model alone."""

    def __init__(self, family: str):
        self.model, self.start = build(CONFIGS[family]), STARTS[family]
        start = self.start
        self.params = tiny.parameters(self.model, seed=5)
        self.generator = Generator(self.model, GREEDY, eos_id=None, pad_id=PAD, start=start)
        self.forward = jax.jit(lambda inputs: self.model.apply({"params": self.params}, inputs).logits_BTV[0])

    @functools.cached_property
    def expected(self) -> list[list[int]]:
        return [self.alone(source) for source in SOURCES]

    def alone(self, source: list[int]) -> list[int]:
        """Greedy target of one source, token by token without a cache."""
        (padded,), (segments,) = np.full((1, tiny.MAX_LENGTH), 17, np.int32), np.zeros((1, tiny.MAX_LENGTH), np.int32)
        padded[: len(source)], segments[: len(source)] = source, 1
        place = np.arange(tiny.MAX_LENGTH, dtype=np.int32)[None]
        encoder, row = Inputs(padded[None], SequenceInfo(place, segments[None])), list(self.start)
        for _ in range(NEW):
            target = np.full((1, tiny.MAX_LENGTH), 17, np.int32)
            target[0, : len(row)] = row
            row.append(int(np.argmax(self.forward(Inputs(target, encoder=encoder))[len(row) - 1])))
        return row[len(self.start) :]


_case = functools.cache(Case)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    return _case(request.param)


def test_targets_of_sources_of_different_lengths_are_the_uncached_forward_pass(case):
    assert case.generator.generate(case.params, SOURCES, NEW) == case.expected
    assert len({tuple(row) for row in case.expected}) > 2
    assert max(len(set(row)) for row in case.expected) > 2


def test_a_target_does_not_depend_on_the_other_sources(case):
    assert case.generator.generate(case.params, SOURCES[::-1], NEW) == case.expected[::-1]
    assert case.generator.generate(case.params, SOURCES[2:3], NEW) == case.expected[2:3]


def test_all_calls_share_one_prefill_and_one_decode(case):
    for sources in (SOURCES, SOURCES[::-1], [[1]] * 4):
        case.generator.generate(case.params, sources, NEW)
    batches = 2  # one source alone, above
    assert case.generator._prefill._cache_size() == case.generator._decode._cache_size() == batches


def test_the_encoder_runs_in_the_prefill_only(case):
    """A decoding step reads no weight of the encoder."""
    generator = case.generator
    params, inputs = generator._decoder.prepared(case.params), generator._decoder.inputs(SOURCES, NEW)
    broken = params | {"encoder": jax.tree.map(lambda leaf: leaf * np.nan, params["encoder"])}
    cache, progress = generator._prefill(params, inputs, NEW, 0)
    _, following = generator._decode(broken, cache, progress, 0, 1)
    assert following.tokens_B.tolist() == [row[1] for row in case.expected]
    _, progress = generator._prefill(broken, inputs, NEW, 0)
    assert progress.tokens_B.tolist() != [row[0] for row in case.expected]


def test_a_penalty_counts_the_start_and_the_target_but_not_the_source():
    case = _case("bart")
    strong = Generator(case.model, SamplingConfig(temperature=0.0, repetition_penalty=1e6), None, PAD, start=case.start)
    (row,) = strong.generate(case.params, [list(range(32))[:16]], 13)
    assert len(set(row) | set(case.start)) == 15  # nothing twice
    assert set(row) & set(range(16))


@pytest.mark.parametrize(
    ("sources", "new", "message"),
    [
        ([[1] * 17], 2, "the longest source has 17 tokens and the encoder's max_length is 16: shorten it"),
        ([[1]], 16, "new_tokens is 16: the model's max_length is 16"),
        ([[1], []], 2, "a prompt is empty"),
        ([[99]], 2, "prompt 0 has token 99, and the model's tokens are 0 to 31"),
    ],
)
def test_bad_requests_are_refused(sources, new, message):
    generator = Generator(build(PAIRS["t5"]), GREEDY, None, PAD, start=(0,))
    with pytest.raises(ValueError, match=message):
        generator.stream(None, sources, new)


def test_a_start_is_of_an_encoder_decoder_and_in_its_vocabulary():
    with pytest.raises(ValueError, match="start is 32: it must be a token of the vocabulary, from 0 to 31"):
        Generator(build(PAIRS["t5"]), GREEDY, None, PAD, start=(0, 32))
    with pytest.raises(ValueError, match="start is .0,. and the model is of type Transformer.*a decoder has none"):
        Generator(build(PUBLISHED["llama"]), GREEDY, None, PAD, start=(0,))
