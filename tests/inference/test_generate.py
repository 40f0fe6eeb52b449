"""Generation with a cache says what the model says without one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED
from llm_jax.inference.cached_decoder import in_compute_type
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.layers.attention.masks import PrefixCausal
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.expert_choice import ExpertChoiceConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import DynamicScaling, LongRoPEScaling, Unscaled
from llm_jax.layers.roles import Role, roles_of
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import boxed_parameters, build
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families import llama as llama_family
from llm_jax.models.families.bert import bert
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.heads import ClassHead
from llm_jax.models.inputs import Inputs
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny
from tests.helpers.published import PAIRS, PUBLISHED

GREEDY = SamplingConfig(temperature=0.0)
PAD = 0
PROMPTS = [[5], [7, 3, 9], [1, 2, 3, 4, 5, 6], [30, 30]]
NEW = 7


class Case:
    """A model with weights, a greedy generator, and the same by the model alone."""

    def __init__(self, family: str):
        self.model = Transformer(tiny.FAMILIES[family]())
        self.params = tiny.parameters(self.model, seed=3)
        self.generator = Generator(self.model, GREEDY, eos_id=None, pad_id=PAD)
        self.forward = jax.jit(lambda tokens: self.model.apply({"params": self.params}, tokens).logits_BTV[0])

    @functools.cached_property
    def expected(self) -> list[list[int]]:
        return [self.alone(prompt, NEW) for prompt in PROMPTS]

    def scores(self, row: list[int]) -> np.ndarray:
        """Scores of the token after `row`, the whole row run without a cache; what stands behind it is not seen."""
        padded = np.full((1, tiny.MAX_LENGTH), 17, np.int32)
        padded[0, : len(row)] = row
        return np.array(self.forward(padded)[len(row) - 1])

    def alone(self, prompt: list[int], new: int, penalty: float = 1.0) -> list[int]:
        """Greedy continuation, token by token."""
        row = list(prompt)
        for _ in range(new):
            scores = self.scores(row)
            for token in set(row):
                scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
            row.append(int(np.argmax(scores)))
        return row[len(prompt) :]


_case = functools.cache(Case)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def case(request):
    return _case(request.param)


@pytest.fixture(scope="module")
def llama():
    return _case("llama")


def test_greedy_rows_of_different_lengths_are_the_uncached_forward_pass(case):
    assert case.generator.generate(case.params, PROMPTS, NEW) == case.expected
    assert len({tuple(row) for row in case.expected}) == len(PROMPTS)
    assert max(len(set(row)) for row in case.expected) > 2


def test_a_model_of_prefixes_reads_its_prompt_in_both_directions():
    config = tiny.tiny_llama().with_mask(PrefixCausal())
    model = Transformer(config)
    params = tiny.parameters(model, seed=3)

    @jax.jit
    def scores(tokens, prefix):
        place = SequenceInfo(jnp.arange(tiny.MAX_LENGTH)[None], prefix_BT=prefix)
        return model.apply({"params": params}, Inputs(tokens, place)).logits_BTV[0]

    def alone(prompt, prefix):
        row = list(prompt)
        for _ in range(NEW):
            tokens = np.pad(row, (0, tiny.MAX_LENGTH - len(row)))[None]
            row.append(int(np.argmax(scores(tokens, np.arange(tiny.MAX_LENGTH)[None] < prefix)[len(row) - 1])))
        return row[len(prompt) :]

    prompts = PROMPTS[1:3]
    expected = [alone(prompt, len(prompt)) for prompt in prompts]
    assert Generator(model, GREEDY, eos_id=None, pad_id=PAD).generate(params, prompts, NEW) == expected
    assert expected != [alone(prompt, 0) for prompt in prompts]


def test_a_row_does_not_depend_on_its_neighbours_or_order(case):
    turned = case.generator.generate(case.params, PROMPTS[::-1], NEW)
    assert turned == case.expected[::-1]
    others = [[11, 12], PROMPTS[1], [13], [14, 15, 16, 17]]
    assert case.generator.generate(case.params, others, NEW)[1] == case.expected[1]


def test_all_calls_share_one_prefill_and_one_decode(llama):
    generator = Generator(llama.model, GREEDY, eos_id=None, pad_id=PAD)
    for prompts in (PROMPTS, PROMPTS[::-1], [[1]] * 4):
        generator.generate(llama.params, prompts, NEW, seed=len(prompts[0]))
    assert generator._prefill._cache_size() == 1
    assert generator._decode._cache_size() == 1


def test_a_row_ends_at_its_end_token_and_the_others_go_on(llama):
    # Take as end token what the second row says third.
    row, at = 1, 2
    end = llama.expected[row][at]
    generator = Generator(llama.model, GREEDY, eos_id=end, pad_id=PAD)
    columns = np.stack(list(generator.stream(llama.params, PROMPTS, NEW)), axis=1)
    wanted = [out[: out.index(end) + 1] if end in out else out for out in llama.expected]
    assert len(wanted[row]) <= at + 1 and any(len(out) == NEW for out in wanted)
    padded = [out + [PAD] * (NEW - len(out)) for out in wanted]
    np.testing.assert_array_equal(columns, padded)
    without_end = [out[:-1] if out[-1] == end else out for out in wanted]
    assert generator.generate(llama.params, PROMPTS, NEW) == without_end


def test_generation_stops_when_all_rows_have_ended(llama):
    end = llama.expected[0][1]
    generator = Generator(llama.model, GREEDY, eos_id=end, pad_id=PAD)
    columns = list(generator.stream(llama.params, [PROMPTS[0]] * 4, NEW))
    assert len(columns) == llama.expected[0].index(end) + 1


def test_tokens_are_streamed_as_int32_one_column_at_a_time(llama):
    stream = llama.generator.stream(llama.params, PROMPTS, NEW)
    first = next(stream)
    assert first.shape == (len(PROMPTS),) and first.dtype == np.int32
    assert first.tolist() == [row[0] for row in llama.expected]


def test_one_new_token_needs_no_decoding(llama):
    assert llama.generator.generate(llama.params, PROMPTS, 1) == [row[:1] for row in llama.expected]


def test_prompts_may_fill_the_model_to_its_last_position(llama):
    prompt = tiny.tokens(1, tiny.MAX_LENGTH - 2)[0].tolist()
    assert llama.generator.generate(llama.params, [prompt] * 4, 2) == [llama.alone(prompt, 2)] * 4


def test_samples_are_decided_by_the_seed(llama):
    # So hot that what is drawn depends on the keys alone, not on what was drawn before.
    generator = Generator(llama.model, SamplingConfig(temperature=1e6), eos_id=None, pad_id=PAD)
    first, again, other = (np.array(generator.generate(llama.params, [[5]] * 4, NEW, seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=0).all()  # the seed matters at every place
    assert len({tuple(column) for column in first.T}) == NEW  # and the place
    assert len({tuple(row) for row in first}) == 4  # and the row
    assert generator._decode._cache_size() == 1


def test_a_penalty_counts_prompt_and_continuation(llama):
    sampling = SamplingConfig(temperature=0.0, repetition_penalty=1.8)
    rows = Generator(llama.model, sampling, eos_id=None, pad_id=PAD).generate(llama.params, PROMPTS, NEW)
    assert rows == [llama.alone(prompt, NEW, penalty=1.8) for prompt in PROMPTS]
    assert rows != llama.expected
    # Neither the prompt alone nor the continuation alone would have given this.
    assert any(set(row) & set(prompt) for prompt, row in zip(PROMPTS, llama.expected, strict=True))
    assert any(len(set(row)) < NEW for row in llama.expected)


def test_bfloat16_says_what_float32_finds_likely(llama):
    model = Transformer(llama.model.config, MIXED)
    rows = Generator(model, GREEDY, eos_id=None, pad_id=PAD).generate(llama.params, PROMPTS, NEW)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        for index, token in enumerate(row):
            scores = llama.scores(prompt + row[:index])
            assert scores[token] > scores.max() - 0.1 * np.ptp(scores)


@pytest.mark.parametrize(
    "name",
    ["bloom", "deepseek_v3", "lamda", "llama", "lstm", "mamba2", "opt, 350m", "qwen2_moe", "recurrent_gemma", "retnet"],
)
def test_matrices_in_the_compute_type_change_nothing(name):
    model = Transformer(PUBLISHED[name], MIXED)
    params = tiny.parameters(model)
    served = in_compute_type(params, roles_of(boxed_parameters(model)), model.precision.dtype)
    assert trees.size_bytes(served) < 0.62 * trees.size_bytes(params)
    forward = jax.jit(lambda params: model.apply({"params": params}, tiny.tokens(2, 8)).logits_BTV)
    np.testing.assert_array_equal(forward(params), forward(served))


def test_the_role_decides_what_is_kept_in_float32():
    roles = {
        "kernel": Role.ROUTER,
        "rate": Role.RATE,
        "mine": Role.MATRIX,
        "table": Role.TABLE,
        "words": Role.EMBEDDING,
    }
    served = in_compute_type({name: jnp.zeros((2, 3)) for name in roles}, roles, jnp.bfloat16)
    assert {name for name, leaf in served.items() if leaf.dtype == jnp.bfloat16} == {"mine", "words"}


ROTARY = {
    "dynamic": DynamicScaling(4.0, original_length=8),
    "longrope": LongRoPEScaling(short=(1.0, 1.5), long=(3.0, 9.0), original_length=8),
}
EXPERTS = {
    "capacity": MoEConfig(4, GLUConfig(16), SoftmaxConfig(2), Capacity(0.5)),
    "capacity by groups": MoEConfig(4, GLUConfig(16), SoftmaxConfig(2), Capacity(0.5, group=6)),
    "expert choice": MoEConfig(4, GLUConfig(16), ExpertChoiceConfig(1.0, allow_future=True)),
}


def _long(name: str) -> TransformerConfig:
    """A model of 128 positions, longer than the multiple to which prompts are padded."""
    rope = RoPEConfig(scaling=ROTARY.get(name, Unscaled()))
    model = llama_family.llama(2, 2, 8, hidden=16, vocab_size=tiny.VOCAB, max_length=128, rope=rope)
    return with_experts(model, EXPERTS[name], (1,)) if name in EXPERTS else model


@pytest.mark.parametrize("name", [*ROTARY, *EXPERTS])
def test_the_first_token_is_that_of_the_prompt_alone(name):
    """Padding, and longer prompts beside it, count for nothing: neither in lengths nor in capacities."""
    model = Transformer(_long(name))
    params = tiny.parameters(model, seed=3)
    prompts = [[5, 9, 2], [7, 3, 9, 1], tiny.tokens(1, 20)[0].tolist()]
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens).logits_BTV[0, -1])
    alone = [np.asarray(forward(np.array([prompt], np.int32))) for prompt in prompts]
    padded, segments = (np.zeros((3, 64), np.int32) for _ in range(2))
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)], segments[row, : len(prompt)] = prompt, 1
    place = SequenceInfo(jnp.broadcast_to(jnp.arange(64), (3, 64)), jnp.asarray(segments))
    together = jax.jit(lambda tokens: model.apply({"params": params}, Inputs(tokens, place)).logits_BTV)(padded)
    for row, prompt in enumerate(prompts):
        np.testing.assert_allclose(together[row, len(prompt) - 1], alone[row], atol=2e-5)
    firsts = Generator(model, GREEDY, eos_id=None, pad_id=PAD).generate(params, prompts, 1)
    assert firsts == [[int(np.argmax(scores))] for scores in alone]


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        (
            [[1, 2], [3] * 12],
            5,
            "longest prompt has 12 tokens and new_tokens is 5.*max_length is 16.*new_tokens to at most 4",
        ),
        ([[3] * 20], 1, "new_tokens to at most 0"),
        ([[1], []], 3, "a prompt is empty"),
        ([], 3, "a prompt is empty"),
        ([[1]], 0, "new_tokens is 0"),
        ([[1], [2, 97]], 3, "prompt 1 has token 97, and the model's tokens are 0 to"),
        ([[-1]], 3, "prompt 0 has token -1"),
        ([[1.5]], 3, "prompt 0 has shape .1,. and type float64"),
        ([[[1, 2]]], 3, "prompt 0 has shape .1, 2."),
        ([[2**40]], 3, "prompt 0 has token 1099511627776"),
    ],
)
def test_bad_requests_are_refused(llama, prompts, new, message):
    with pytest.raises(ValueError, match=message):
        llama.generator.generate(llama.params, prompts, new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 10_000}, "vocab_size is 10000 and the model's is"),
        ({"vocab_size": 0}, "vocab_size is 0 and the model's is"),
        ({"eos_id": -1}, "eos_id is -1"),
        ({"pad_id": 10_000}, "pad_id is 10000"),
        ({"vocab_size": 9, "eos_id": 9}, "eos_id is 9.*from 0 to 8"),
    ],
)
def test_a_vocabulary_that_is_not_the_models_is_refused(llama, change, message):
    with pytest.raises(ValueError, match=message):
        Generator(llama.model, GREEDY, **({"eos_id": None, "pad_id": PAD} | change))


LLAMA = PUBLISHED["llama"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (bert(1, 2, 8), "AttentionConfig of the model is not causal"),
        (
            PAIRS["t5"],
            "start is .. and the model is of type EncoderDecoder: an EncoderDecoder requires the first tokens",
        ),
        (PAIRS["bart"].decoder, "requires the output of an encoder"),
        (
            dataclasses.replace(LLAMA, head=ClassHead(3)),
            "head is ClassHead: generation requires HeadConfig or TiedHead",
        ),
        (dataclasses.replace(LLAMA, head=None), "head is NoneType: generation requires HeadConfig or TiedHead"),
    ],
)
def test_models_that_cannot_write_a_row_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Generator(build(config), SamplingConfig(), None, 0)
