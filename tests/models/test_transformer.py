"""What must hold for every decoder, tried on published families that have every part."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED
from llm_jax.layers.attention.kv_cache import Cache
from llm_jax.layers.context import Context
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import abstract_parameters
from llm_jax.models.config import TransformerConfig
from llm_jax.models.inputs import Inputs
from llm_jax.models.transformer import Transformer
from llm_jax.models.upcycle import has_experts
from tests.helpers import tiny
from tests.helpers.published import EVERY, PUBLISHED, covering, types

T = 8
TOKENS = tiny.tokens(2, T)


@dataclasses.dataclass
class Case:
    """A model with weights and the compiled passes that the tests share: rows are of one length and have places."""

    config: TransformerConfig

    def __post_init__(self):
        self.model = Transformer(self.config)
        self.params = tiny.parameters(self.model)
        self.forward = jax.jit(self._forward)
        self.continued = jax.jit(self._continued)
        self.influence = jax.jit(self._influence)

    def _forward(self, tokens: jax.Array, place: SequenceInfo) -> jax.Array:
        return self.model.apply({"params": self.params}, Inputs(tokens, place)).logits_BTV

    def _influence(self, place: SequenceInfo) -> jax.Array:
        """Size of d logits[t] / d embedding[s], [T, T], for the first row."""
        first = jax.tree.map(lambda array: array[:1], place)

        def scores(x_BTD: jax.Array) -> jax.Array:
            def run(model: Transformer) -> jax.Array:
                bias_RN = model.relative_bias() if self.config.relative_bias else None
                hidden_BTD, *_ = model.stack(x_BTD, Context(first, bias_RN=bias_RN))
                return model.unembed(model.final_norm(hidden_BTD))

            logits_BTV = self.model.apply({"params": self.params}, method=run)
            return jnp.sum(logits_BTV[0] * np.sin(np.arange(tiny.VOCAB)), axis=-1)

        x_BTD = np.random.default_rng(0).normal(size=(1, T, self.config.width)).astype(np.float32)
        return jnp.abs(tiny.jacobian(scores, x_BTD)[0][:, 0]).max(axis=-1)

    def _continued(self, tokens: jax.Array, place: SequenceInfo | None, cache: Cache) -> tuple[jax.Array, Cache]:
        output = self.model.apply({"params": self.params}, Inputs(tokens, place), cache)
        return output.logits_BTV, output.cache


_case = functools.cache(lambda name: Case(PUBLISHED[name]))


@pytest.fixture(scope="module", params=covering(PUBLISHED))
def case(request):
    """Models that have every option of every part between them."""
    return _case(request.param)


@pytest.fixture(scope="module", params=covering(PUBLISHED, types))
def of_type(request):
    """Models that have every type of part between them, for what no option of a part decides."""
    return _case(request.param)


def _place(*lengths: int) -> SequenceInfo:
    """Documents of these lengths, one after the other, and padding to the end of the row, in both rows."""
    segments, positions = np.zeros((2, 2, T), np.int32)
    start = 0
    for number, length in enumerate(lengths, start=1):
        segments[:, start : start + length] = number
        positions[:, start : start + length] = np.arange(length)
        start += length
    return SequenceInfo(positions, segments)


WHOLE = _place(T)


def _same(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_no_token_knows_a_later_one(case):
    influence = np.asarray(case.influence(WHOLE))
    later = np.triu(np.ones((T, T), bool), k=1)
    assert (influence[later] == 0).all()
    assert (influence[~later] > 1e-6).all()


def test_no_token_knows_another_document_or_padding(case):
    influence = np.asarray(case.influence(_place(4, 3)))
    document = np.array([1, 1, 1, 1, 2, 2, 2, 0])
    related = np.tril(np.ones((T, T), bool)) & (document[:, None] == document[None, :])
    real = document != 0
    assert (influence[real][:, real][related[real][:, real]] > 1e-6).all()
    assert (influence[real][~related[real]] == 0).all()


def test_packed_documents_are_as_if_alone(case):
    packed = case.forward(TOKENS, _place(5, 3))
    _same(packed[:, :5], case.forward(TOKENS, _place(5))[:, :5])
    _same(packed[:, 5:], case.forward(np.roll(TOKENS, 3, axis=1), _place(3))[:, :3])
    # The same row without its segment ids is one document, and that is something else.
    dropped = case.forward(TOKENS, _place(5, 3).replace(segment_ids_BT=np.ones((2, T), np.int32)))
    assert np.abs(packed - dropped)[:, 5:].max() > 1e-2
    _same(dropped[:, :5], packed[:, :5])


def test_what_padding_holds_changes_nothing(case):
    place = _place(5)
    other = TOKENS.copy()
    other[:, 5:] = (other[:, 5:] + 1) % tiny.VOCAB
    padded = case.forward(TOKENS, place)
    np.testing.assert_array_equal(padded[:, :5], case.forward(other, place)[:, :5])
    assert np.isfinite(padded).all()


def test_padding_on_the_left_changes_nothing(case):
    place = _place(5)
    shifted = jax.tree.map(lambda array: np.roll(array, 3, axis=1), place)
    tokens = np.roll(TOKENS, 3, axis=1)
    _same(case.forward(tokens, shifted)[:, 3:], case.forward(TOKENS, place)[:, :5])


def test_hidden_states_of_a_row_without_padding_or_places_give_the_logits_of_one_document(of_type):
    """With the parameters that are named, and no others."""
    hidden = jax.jit(lambda tokens: of_type.model.apply({"params": of_type.params}, tokens, method="hidden"))(
        TOKENS[:, :5]
    )
    assert hidden.logits_BTV is None and hidden.cache is None
    head = of_type.model.unembed_parameters(of_type.params)
    unembed = jax.jit(lambda hidden_BTD: of_type.model.apply({"params": head}, hidden_BTD, method="unembed"))
    _same(unembed(hidden.hidden_BTD), of_type.forward(TOKENS, _place(5))[:, :5])


def test_order_matters(case):
    swapped = TOKENS.copy()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    assert (swapped[:, :2] != TOKENS[:, :2]).any()
    assert np.abs(case.forward(TOKENS, WHOLE) - case.forward(swapped, WHOLE))[:, -1].max() > 1e-3


def test_tokens_one_by_one_without_places_continue_those_of_the_cache(case):
    cache, logits = case.model.allocate(2, T + 2), []
    for start in range(T):
        assert cache.length == start
        part, cache = case.continued(TOKENS[:, start : start + 1], None, cache)
        logits.append(part)
    _same(np.concatenate(logits, axis=1), case.forward(TOKENS, WHOLE))


@pytest.mark.parametrize("lengths", [(4, 4), (4, 2)])
def test_prompts_share_a_cache_with_what_follows_them(case, lengths):
    # A row of less than 4 tokens has padding; then both go on in the same slots, at their own positions.
    lengths = np.array(lengths)
    real, steps = np.int32(np.arange(4) < lengths[:, None]), np.tile(np.arange(4, dtype=np.int32), (2, 1))
    first, cache = case.continued(TOKENS[:, :4], SequenceInfo(steps, real), case.model.allocate(2, T + 2))
    more = SequenceInfo(steps + np.int32(lengths)[:, None], np.ones_like(steps))
    second, _ = case.continued(TOKENS[:, 4:], more, cache)
    for row, length in enumerate(lengths):
        tokens = np.concatenate([TOKENS[row, :length], TOKENS[row, 4:], TOKENS[row, length:4]])
        alone = case.forward(np.tile(tokens, (2, 1)), WHOLE)[0]
        _same(first[row, :length], alone[:length])
        _same(second[row], alone[length : length + 4])


def test_bfloat16_is_finite_and_near_to_float32(of_type):
    model = Transformer(of_type.config, MIXED)
    output = jax.jit(lambda tokens: model.apply({"params": of_type.params}, tokens))(TOKENS)
    exact = of_type.forward(TOKENS, WHOLE)
    assert output.logits_BTV.dtype == jnp.float32 and output.hidden_BTD.dtype == jnp.bfloat16
    assert np.isfinite(output.logits_BTV).all()
    errors = np.abs(output.logits_BTV - exact).max(axis=-1) / np.abs(exact).max()
    # Rounding gives a token another expert here and there, and what sees it another token to see.
    error = np.median(errors) if has_experts(of_type.config) else errors.max()
    assert 0 < error < 0.1


def test_a_row_longer_than_the_model_is_refused(of_type):
    with pytest.raises(ValueError, match="17 tokens and the model's max_length is 16: shorten the sequences or raise"):
        jax.eval_shape(of_type.model.apply, {"params": of_type.params}, tiny.tokens(1, 17))


def test_a_cache_longer_than_the_model_is_refused(of_type):
    with pytest.raises(ValueError, match="17 tokens exceeds the model's max_length of 16"):
        of_type.model.allocate(1, 17)


def test_more_tokens_than_the_cache_has_slots_are_refused(of_type):
    with pytest.raises(ValueError, match="5"):
        jax.eval_shape(of_type.continued, TOKENS, None, of_type.model.allocate(2, 5))


def test_parameters_are_kept_in_the_type_of_the_precision(of_type):
    for precision in (MIXED, dataclasses.replace(MIXED, params="bfloat16")):
        shapes, _ = abstract_parameters(Transformer(of_type.config, precision))
        # A router's correction bias is float32 always: steps of a thousandth would be lost in bfloat16.
        kept = [leaf.dtype for name, leaf in trees.named_leaves(shapes) if not name.endswith("router/bias")]
        assert set(kept) == {precision.param_dtype}


@pytest.mark.parametrize("name", ["bert", "llama", "lstm"])
def test_an_order_of_prediction_is_refused_where_mixers_follow_none(name):
    model = Transformer(EVERY[name])
    place = SequenceInfo(jnp.arange(T)[None], order_BT=jnp.arange(T)[None])
    with pytest.raises(ValueError, match="order_BT, and not every mixer has the mask Permuted"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), Inputs(TOKENS, place)))


@pytest.mark.parametrize("name", ["bert", "llama", "lstm"])
def test_a_prefix_is_refused_where_mixers_follow_none(name):
    place = SequenceInfo(jnp.arange(T)[None], prefix_BT=jnp.arange(T)[None] < 2)
    with pytest.raises(ValueError, match="prefix_BT, and not every mixer has the mask PrefixCausal"):
        jax.eval_shape(lambda: Transformer(EVERY[name]).init(jax.random.key(0), Inputs(TOKENS, place)))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layers_start_different_and_with_the_scales_of_their_configs(family):
    make = functools.partial(Transformer(tiny.FAMILIES[family]()).init, jax.random.key(0), TOKENS)
    params = jax.tree.map(lambda box: box.value, jax.jit(make)()["params"], is_leaf=lambda leaf: hasattr(leaf, "value"))
    block = params["stack"]["segment_0"]["block_0"]
    for kernel, stddev in ((block["mixer"]["query"], 0.02), (block["mixer"]["out"], 0.02 / np.sqrt(2 * 2))):
        values = np.asarray(kernel["kernel"])
        np.testing.assert_allclose(values.std(axis=tuple(range(1, values.ndim))), stddev, rtol=0.25)
        assert not np.allclose(values[0], values[1])
