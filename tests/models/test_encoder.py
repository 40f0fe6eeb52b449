"""What must hold for every encoder, tried on published families that have every part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models import count
from llm_jax.models.build import abstract_parameters, build
from llm_jax.models.config import TransformerConfig
from llm_jax.models.heads import ClassHead
from llm_jax.models.inputs import Inputs
from tests.helpers import tiny
from tests.helpers.published import ENCODERS, covering

T = 8
TOKENS = tiny.tokens(2, T)
FIRST, SECOND = slice(0, 3), slice(3, 6)
"""Two packed documents; the rest of the row is padding."""


def _place(*lengths: int, rows: int = 2) -> SequenceInfo:
    """Documents of these lengths one after the other and padding to the end, in all rows; all tokens of type 0."""
    segments, positions = np.zeros((2, rows, T), np.int32)
    ends = np.cumsum(lengths)
    for number, (start, end) in enumerate(zip(ends - lengths, ends, strict=True), start=1):
        segments[:, start:end], positions[:, start:end] = number, np.arange(end - start)
    return SequenceInfo(positions, segments, np.zeros((rows, T), np.int32))


PACKED = _place(3, 3)


@dataclasses.dataclass
class Case:
    """A model with weights and one compiled forward pass to hidden states and scores that the tests share."""

    config: TransformerConfig

    def __post_init__(self):
        self.model = build(self.config)
        self.params = tiny.parameters(self.model)
        self.forward = jax.jit(lambda *arrays: self.model.apply({"params": self.params}, Inputs(*arrays)))

    @property
    def of_rows(self) -> bool:
        """Whether the scores are of whole rows."""
        return isinstance(self.config.head, ClassHead) and self.config.head.of == "sequence"


@pytest.fixture(scope="module", params=covering(ENCODERS))
def case(request):
    return Case(ENCODERS[request.param])


def _same(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_every_token_sees_every_token_of_its_document_and_no_other(case):
    """By the size of d hidden[t] / d embedding[s]."""
    width = case.config.embed.table_width(case.config.width)
    x_BTE, weights_D = np.random.default_rng(0).normal(size=(1, T, width)), np.sin(np.arange(case.config.width))
    place = _place(3, 3, rows=1)

    def sums(x_BTE: jax.Array) -> jax.Array:
        inputs = Inputs(sequence=place, features_BTE=x_BTE)
        return case.model.apply({"params": case.params}, inputs, method="hidden").hidden_BTD[0] @ weights_D

    influence = np.abs(jax.jit(jax.jacrev(sums))(np.float32(x_BTE))[:, 0]).max(axis=-1)
    assert (influence[FIRST, FIRST] > 1e-6).all() and (influence[SECOND, SECOND] > 1e-6).all()
    assert (influence[FIRST, 3:] == 0).all()
    assert (influence[SECOND, FIRST] == 0).all() and (influence[SECOND, 6:] == 0).all()


def test_packed_documents_are_as_if_alone(case):
    """Rows without padding or places."""
    packed = case.forward(TOKENS, PACKED).hidden_BTD
    for document in (FIRST, SECOND):
        alone = case.forward(TOKENS[:, document])
        assert alone.logits_BTV.shape[:2] == (2, 1 if case.of_rows else alone.hidden_BTD.shape[1])
        _same(packed[:, document], alone.hidden_BTD)
    # The same row as one document is something else.
    whole = case.forward(TOKENS, PACKED.replace(segment_ids_BT=np.ones((2, T), np.int32))).hidden_BTD
    assert np.abs(packed - whole)[:, :6].max() > 1e-2


def test_what_padding_holds_changes_nothing(case):
    other = TOKENS.copy()
    other[:, 6:] = (other[:, 6:] + 1) % tiny.VOCAB
    one, two = case.forward(TOKENS, PACKED), case.forward(other, PACKED)
    np.testing.assert_array_equal(one.hidden_BTD[:, :6], two.hidden_BTD[:, :6])
    np.testing.assert_array_equal(one.logits_BTV[:, :6], two.logits_BTV[:, :6])
    assert np.isfinite(one.logits_BTV).all()


def test_padding_on_the_left_changes_nothing(case):
    place = _place(5)
    shifted = jax.tree.map(lambda array: np.roll(array, 3, axis=1), place)
    one, two = case.forward(TOKENS, place), case.forward(np.roll(TOKENS, 3, axis=1), shifted)
    _same(two.hidden_BTD[:, 3:], one.hidden_BTD[:, :5])


def test_order_matters(case):
    swapped = TOKENS.copy()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    one, two = case.forward(TOKENS, PACKED).hidden_BTD, case.forward(swapped, PACKED).hidden_BTD
    assert np.abs(one - two)[:, 2].max() > 1e-3
    np.testing.assert_array_equal(one[:, SECOND], two[:, SECOND])


def test_types_matter_to_all_of_their_document(case):
    if case.config.embed.types < 2:
        # DistilBERT has no types, and RoBERTa one, which is added to all tokens.
        untyped = case.forward(TOKENS, PACKED.replace(types_BT=None)).hidden_BTD
        _same(case.forward(TOKENS, PACKED).hidden_BTD, untyped)
        return
    types = np.zeros((2, T), np.int32)
    types[:, 1] = case.config.embed.types - 1
    place = PACKED.replace(types_BT=types)
    plain, typed = case.forward(TOKENS, PACKED).hidden_BTD, case.forward(TOKENS, place).hidden_BTD
    assert (np.abs(plain - typed)[:, FIRST].max(axis=(0, 2)) > 1e-3).all()
    np.testing.assert_array_equal(plain[:, SECOND], typed[:, SECOND])


def test_scores_are_read_where_the_head_says(case):
    """Each from its own token's hidden state; those of a row from its first one."""
    output = case.forward(TOKENS, PACKED)
    head = case.model.unembed_parameters(case.params)
    unembed = jax.jit(lambda hidden_BTD: case.model.apply({"params": head}, hidden_BTD, method="unembed"))
    _same(unembed(np.asarray(output.hidden_BTD)), output.logits_BTV)
    hidden = np.asarray(output.hidden_BTD)
    moved = np.eye(T, dtype=np.float32)[:, :, None]
    changed = unembed(hidden + moved[3])
    differs = np.abs(changed - output.logits_BTV).max(axis=(0, 2)) > 1e-3
    classes = case.config.head.classes if isinstance(case.config.head, ClassHead) else tiny.VOCAB
    assert output.logits_BTV.dtype == jnp.float32
    if case.of_rows:
        assert output.logits_BTV.shape == (2, 1, classes) and not differs.any()
        assert np.abs(unembed(hidden + moved[0]) - output.logits_BTV).max() > 1e-3
    else:
        assert output.logits_BTV.shape == (2, T, classes) and differs.tolist() == [place == 3 for place in range(T)]


def test_bfloat16_is_finite_and_near_to_float32(case):
    model = build(case.config, MIXED)
    output = jax.jit(lambda tokens: model.apply({"params": case.params}, Inputs(tokens, PACKED)))(TOKENS)
    exact = case.forward(TOKENS, PACKED).logits_BTV[:, :6]
    assert output.logits_BTV.dtype == jnp.float32 and output.hidden_BTD.dtype == jnp.bfloat16
    assert np.isfinite(output.logits_BTV).all()
    error = np.abs(output.logits_BTV[:, :6] - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.1


def test_a_cache_is_refused(case):
    with pytest.raises(ValueError, match="AttentionConfig of the model is not causal: a KV cache"):
        case.model.allocate(1, T)


@pytest.fixture(scope="module")
def shared() -> Case:
    return Case(ENCODERS["albert"])


def _unshared(config: TransformerConfig) -> TransformerConfig:
    segments = tuple(dataclasses.replace(segment, shared=False) for segment in config.segments)
    return dataclasses.replace(config, segments=segments)


def test_shared_layers_have_one_set_of_weights(shared):
    shapes, words = abstract_parameters(shared.model)
    stacked, _ = abstract_parameters(build(_unshared(shared.config)))
    repeats = shared.config.segments[0].repeats
    assert repeats > 1
    for (path, leaf), (_, other) in zip(
        trees.named_leaves(shapes["stack"]), trees.named_leaves(stacked["stack"]), strict=True
    ):
        assert (repeats, *leaf.shape) == other.shape, path
    for (_, leaf), names in zip(
        trees.named_leaves(shapes), jax.tree.leaves(words, is_leaf=lambda node: isinstance(node, tuple)), strict=True
    ):
        assert len(names) == leaf.ndim and "layers" not in names
    own, all_own = count.parameters(shared.config), count.parameters(_unshared(shared.config))
    blocks = sum(leaf.size for leaf in jax.tree.leaves(shapes["stack"]))
    assert all_own - own == (repeats - 1) * blocks


def test_shared_layers_compute_and_learn_as_copies_would(shared):
    """The gradient of a weight is the sum of those of its copies."""
    repeats = shared.config.segments[0].repeats
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (repeats, *leaf.shape)), shared.params["stack"])

    def loss(model, params):
        return jnp.mean(jnp.sin(model.apply({"params": params}, Inputs(TOKENS, PACKED)).logits_BTV))

    value, gradient = jax.jit(jax.value_and_grad(lambda params: loss(shared.model, params)))(shared.params)
    other = build(_unshared(shared.config))
    params = shared.params | {"stack": copies}
    wanted, expected = jax.jit(jax.value_and_grad(lambda params: loss(other, params)))(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    expected["stack"] = jax.tree.map(lambda leaf: leaf.sum(axis=0), expected["stack"])
    for (path, leaf), (_, summed) in zip(trees.named_leaves(gradient), trees.named_leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, summed, rtol=1e-3, atol=1e-6, err_msg=path)
