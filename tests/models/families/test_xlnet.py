"""XLNet: one row of content and of tokens that ask is the paper's two streams, and no order leaks."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models import count
from llm_jax.models.build import abstract_parameters
from llm_jax.models.families.bert import bert
from llm_jax.models.families.xlnet import last_head, xlnet
from llm_jax.models.inputs import Inputs
from llm_jax.models.stack import Execution, Segment
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny

T = 7
CONFIG = dataclasses.replace(
    xlnet(2, 4, 16, vocab_size=tiny.VOCAB, max_length=2 * T, hidden=24), execution=Execution(unroll=1)
)
MODEL = Transformer(CONFIG)
PARAMS = tiny.parameters(MODEL)
TOKENS = tiny.tokens(1, T)
TYPES = np.array([0, 0, 0, 1, 1, 1, 1])
ALL = np.array([3, 6, 0, 4, 2, 5, 1])
"""An order of all tokens: the fourth is predicted first."""


def _row(order: Sequence[int], targets: Sequence[int], given: Sequence[int] = (), document: int = 1) -> SequenceInfo:
    """A document whose tokens `order` are predicted in this order after `given`, and tokens that ask for `targets`."""
    length = len(order) + len(given)
    ranks = np.zeros(length, np.int32)
    ranks[list(order)] = np.arange(1, len(order) + 1)
    at = np.concatenate([np.arange(length), np.array(targets, int)]).astype(np.int32)
    asks = np.arange(len(at)) >= length
    arrays = (at, np.full(len(at), document, np.int32), TYPES[at], ranks[at], asks)
    return SequenceInfo(*(array[None] for array in arrays))


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, length - array.shape[1])))


def _tokens(placement: SequenceInfo, tokens: np.ndarray = TOKENS) -> np.ndarray:
    """The tokens with a 0 for each that asks."""
    return _padded(tokens, placement.positions_BT.shape[1])


def _long(placement: SequenceInfo | None, length: int) -> int:
    """The length to which a row is padded so that all rows share a program, but for those that name no padding."""
    return length if placement is None or placement.segment_ids_BT is None else 2 * T


def _logits(tokens: np.ndarray, placement: SequenceInfo | None = None, model: Transformer = MODEL) -> np.ndarray:
    length = tokens.shape[1]
    tokens, placement = jax.tree.map(lambda x: _padded(x, _long(placement, length)), (tokens, placement))
    return np.asarray(_apply(tokens, placement, model))[:, :length]


@functools.partial(jax.jit, static_argnames="model")
def _apply(tokens: jax.Array, placement: SequenceInfo | None, model: Transformer) -> jax.Array:
    return model.apply({"params": PARAMS}, Inputs(tokens, placement)).logits_BTV


def _influence(placement: SequenceInfo) -> np.ndarray:
    """Size of d logits[t] / d embedding[s], [T, T]."""
    length = placement.positions_BT.shape[1]
    placement = jax.tree.map(lambda x: _padded(x, _long(placement, length)), placement)
    return np.asarray(_sizes(placement))[:length, :length]


@jax.jit
def _sizes(placement: SequenceInfo) -> jax.Array:
    def scores(x_BTD: jax.Array) -> jax.Array:
        def run(model: Transformer) -> jax.Array:
            return model.unembed(model.hidden(Inputs(sequence=placement, features_BTE=x_BTD)).hidden_BTD)

        logits_BTV = MODEL.apply({"params": PARAMS}, method=run)
        return jnp.sum(logits_BTV[0] * jnp.sin(jnp.arange(tiny.VOCAB)), axis=-1)

    shape = (*placement.positions_BT.shape, CONFIG.width)
    x_BTD = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    return jnp.abs(jax.jacrev(scores)(x_BTD)[:, 0]).max(axis=-1)


def _attention(x: np.ndarray, at: int, seen: list[int], h: dict[int, np.ndarray], p: dict) -> np.ndarray:
    """RelAttn(q = x at place `at`, kv = the content stream at `seen`) (A.2, with 2.5's segment encodings)."""
    width = len(x)
    y = np.zeros(width)
    if not seen:
        return y
    for n in range(p["parts"].shape[1]):
        w = {name: part["kernel"][:, n] for name, part in p.items() if name in ("query", "key", "value", "distance")}
        u, v, b = (p[name]["bias"][n] for name in ("by_content", "by_distance", "by_part"))
        q, scores = x @ w["query"], []
        for other in seen:
            angles = (at - other) * 10_000.0 ** (-2 * np.arange(width // 2) / width)
            r = np.concatenate([np.sin(angles), np.cos(angles)]) @ w["distance"]
            s = p["parts"][int(TYPES[at] != TYPES[other]), n]
            scores.append(((q + u) @ (h[other] @ w["key"]) + (q + v) @ r + (q + b) @ s) / np.sqrt(len(q)))
        weights = np.exp(scores - np.max(scores))
        values = np.stack([h[other] @ w["value"] for other in seen])
        y += (weights / weights.sum() @ values) @ p["out"]["kernel"][n]
    return y


def _norm(x: np.ndarray, p: dict) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-12) * p["scale"] + p["bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def _layer(x: np.ndarray, at: int, seen: list[int], h: dict[int, np.ndarray], p: dict) -> np.ndarray:
    """LayerNorm(x + RelAttn), then Posff (A.2)."""
    x = _norm(x + _attention(x, at, seen, h, p["mixer"]), p["mixer_stream_norm"])
    up, down = p["ffn"]["up"], p["ffn"]["down"]
    inner = _gelu(x @ up["kernel"] + up["bias"])
    return _norm(x + inner @ down["kernel"] + down["bias"], p["ffn_stream_norm"])


def _two_streams(order: Sequence[int], given: Sequence[int]) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Logits of the content stream h and of the query stream g at every place, in float64.

    The first states are h_i = e(x_i) and g_i = w; in each layer g_z_t reads h_z_<t and h_z_t reads h_z_<=t (2.3,
    equations 1 and 2). `given` comes before all of the order, and its tokens see one another (2.3, partial prediction).
    """
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)
    table = params["embed"]["table"]
    before = {at: list(given) for at in given} | {at: [*given, *order[:t]] for t, at in enumerate(order)}
    h = {at: table[TOKENS[0, at]] for at in before}
    g = {at: params["embed"]["target"] for at in before}
    layers = params["stack"]["segment_0"]["block_0"]
    for m in range(CONFIG.depth):
        p = jax.tree.map(lambda leaf, m=m: leaf[m], layers)
        g_next = {at: _layer(g[at], at, before[at], h, p) for at in before}
        h = {at: _layer(h[at], at, sorted({at, *before[at]}), h, p) for at in before}
        g = g_next
    logits = [{at: x @ table.T + params["head"]["bias"] for at, x in stream.items()} for stream in (h, g)]
    return logits[0], logits[1]


@pytest.mark.parametrize(
    ("order", "given"),
    [(ALL, ()), (np.arange(T), ()), (np.array([5, 0, 2]), (1, 3, 4, 6)), ((), tuple(range(T)))],
    ids=["all", "left to right", "three of them", "none"],
)
def test_one_longer_row_is_the_two_streams_of_the_paper(order, given):
    content, query = _two_streams(order, given)
    targets = np.random.default_rng(0).permutation(T)
    place = _row(order, targets, given)
    logits = _logits(_tokens(place), place)[0]
    _same(logits[:T], [content[at] for at in range(T)])
    _same(logits[T:], [query[at] for at in targets])
    assert np.abs(logits).max() > 1


def _same(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_no_target_knows_itself_or_what_comes_after_it():
    influence = _influence(_row(ALL, ALL))
    for t, at in enumerate(ALL):
        asks = influence[T + t]
        assert (asks[ALL[t:]] == 0).all() and (asks[ALL[:t]] > 1e-6).all(), at
        assert (influence[at][ALL[t + 1 :]] == 0).all() and (influence[at][ALL[: t + 1]] > 1e-6).all(), at
    assert (influence[:, T:] == 0).all()


def test_what_is_given_knows_nothing_of_what_is_predicted():
    given, order = [0, 2, 3, 6], [5, 1, 4]
    influence = _influence(_row(order, order, given))
    for at in given:
        assert (influence[at, given] > 1e-6).all() and (influence[at, order] == 0).all()
    for t, at in enumerate(order):
        assert (influence[T + t, given] > 1e-6).all(), at
        assert (influence[T + t, order[t:]] == 0).all() and (influence[T + t, order[:t]] > 1e-6).all(), at


def test_in_the_order_of_reading_the_content_is_causal():
    influence = _influence(_row(np.arange(T), []))
    later = np.triu(np.ones((T, T), bool), k=1)
    assert (influence[later] == 0).all() and (influence[~later] > 1e-6).all()
    mixer = dataclasses.replace(CONFIG.segments[0].blocks[0].mixer, mask=Causal())
    segment = CONFIG.segments[0]
    blocks = (dataclasses.replace(segment.blocks[0], mixer=mixer),)
    embed = dataclasses.replace(CONFIG.embed, target=False)
    causal = Transformer(dataclasses.replace(CONFIG, embed=embed, segments=(Segment(blocks, segment.repeats),)))
    place = _row(np.arange(T), [])
    _same(_logits(TOKENS, place), _logits(TOKENS, place.replace(order_BT=None, targets_BT=None), causal))


def test_without_an_order_every_token_knows_all():
    place = SequenceInfo(np.arange(T, dtype=np.int32)[None])
    assert (_influence(place) > 1e-6).all()
    np.testing.assert_array_equal(_logits(TOKENS), _logits(TOKENS, place))
    _same(_logits(TOKENS, place), _logits(TOKENS, place.replace(order_BT=np.zeros((1, T), np.int32))))


def test_asking_changes_nothing_else_and_a_token_that_asks_may_have_any_id():
    place, less = _row(ALL, [2, 5]), _row(ALL, [])
    logits = _logits(_tokens(place), place)
    _same(logits[:, :T], _logits(TOKENS, less))
    any_id = np.concatenate([TOKENS, np.full((1, 2), 9, np.int32)], axis=1)
    np.testing.assert_array_equal(logits, _logits(any_id, place))
    # Two that ask for the same give the same; nothing depends on where in the row they stand.
    place = _row(ALL, [5, 2, 5])
    again = _logits(_tokens(place), place)
    _same(again[:, T:], logits[:, [T + 1, T, T + 1]])


def _beside(*rows: SequenceInfo) -> SequenceInfo:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *rows)


def _cut(placement: SequenceInfo, places: Sequence[int]) -> SequenceInfo:
    return jax.tree.map(lambda array: array[:, np.array(places)], placement)


def test_packed_documents_are_as_if_alone():
    one, other = _row([2, 0], [0, 2], given=[1]), _row([1, 3], [3, 1], given=[0, 2], document=2)
    tokens = _tokens(one, TOKENS[:, :3]), _tokens(other, TOKENS[:, 3:])
    # Content of both, then those that ask in both.
    mixed = [0, 1, 2, 5, 6, 7, 8, 3, 4, 9, 10]
    both = _cut(_beside(one, other), mixed)
    logits = _logits(np.concatenate(tokens, axis=1)[:, mixed], both)
    alone = np.concatenate([_logits(tokens[0], one), _logits(tokens[1], other)], axis=1)
    _same(logits, alone[:, mixed])
    joined = _logits(np.concatenate(tokens, axis=1)[:, mixed], both.replace(segment_ids_BT=None))
    assert np.abs(joined - logits).max() > 1e-2


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(left):
    place = _row([3, 1], [1, 3], given=[0, 2])
    tokens = _tokens(place, TOKENS[:, :4])
    padding = jax.tree.map(lambda array: np.zeros((1, 3), array.dtype), place)
    # A token that asks for nothing, where rows have different numbers of targets, is padding too.
    padding = padding.replace(targets_BT=np.array([[False, False, True]]))
    rows = [padding, place] if left else [place, padding]
    for filler in (0, 7):
        fill = np.full((1, 3), filler, np.int32)
        padded = _logits(np.concatenate([fill, tokens] if left else [tokens, fill], axis=1), _beside(*rows))
        assert np.isfinite(padded).all()
        _same(padded[:, 3:] if left else padded[:, :-3], _logits(tokens, place))


def test_bfloat16_is_finite_and_near_to_float32():
    place = _row(ALL, ALL)
    exact = _logits(_tokens(place), place)
    logits = _logits(_tokens(place), place, Transformer(CONFIG, MIXED))
    assert logits.dtype == jnp.float32 and np.isfinite(logits).all()
    assert 0 < np.abs(logits - exact).max() / np.abs(exact).max() < 0.1


def test_a_loop_with_and_unrolled_layers_without_recomputation_agree():
    place = _row([5, 0, 2], [0, 2, 5], (1, 3, 4, 6))

    def gradient(execution: Execution):
        model = Transformer(dataclasses.replace(CONFIG, execution=execution))

        def loss(params):
            logits_BTV = model.apply({"params": params}, Inputs(_tokens(place), place)).logits_BTV[:, T:]
            return jnp.mean(jax.nn.logsumexp(logits_BTV, axis=-1) - logits_BTV[..., 0])

        return jax.jit(jax.value_and_grad(loss))(PARAMS)

    loss, gradients = gradient(Execution("projections", unroll=1))
    expected_loss, expected = gradient(Execution(unroll=99))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for (path, actual), (_, wanted) in zip(trees.named_leaves(gradients), trees.named_leaves(expected), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-5, err_msg=path)
        assert np.abs(wanted).max() > 0, path


@pytest.mark.parametrize("head", [None, last_head(3)])
def test_parameters_are_counted(head):
    config = xlnet(3, 2, 8, vocab_size=11, head=head)
    shapes, _ = abstract_parameters(Transformer(config))
    assert count.parameters(config) == trees.count(shapes)


def test_a_row_may_be_read_from_its_last_token():
    model = Transformer(dataclasses.replace(CONFIG, head=last_head(3)))
    params = tiny.parameters(model)
    output = jax.jit(model.apply)({"params": params}, TOKENS)
    x = np.asarray(output.hidden_BTD)[0, -1]
    dense, scores = params["head"]["transform"]["dense"], params["head"]
    expected = np.tanh(x @ dense["kernel"] + dense["bias"]) @ scores["kernel"] + scores["bias"]
    np.testing.assert_allclose(output.logits_BTV[0], expected[None], rtol=1e-4, atol=1e-5)


def test_what_would_leak_or_is_not_there_is_refused():
    place = _row(ALL, ALL).replace(order_BT=None)
    with pytest.raises(ValueError, match="targets_BT and embed.target is False"):
        jax.eval_shape(
            Transformer(bert(1, 2, 8, vocab_size=tiny.VOCAB)).init, jax.random.key(0), Inputs(_tokens(place), place)
        )
    block = dataclasses.replace(CONFIG.segments[0].blocks[0], mixer=AttentionConfig(4, 4, 4))
    with pytest.raises(ValueError, match="not every mixer is RelativeAttentionConfig with the mask Permuted"):
        dataclasses.replace(CONFIG, segments=(*CONFIG.segments, Segment((block,), 1)))
    with pytest.raises(
        ValueError, match="RelativeAttentionConfig of the model is not causal: a KV cache requires a causal model"
    ):
        jax.eval_shape(lambda: MODEL.apply({"params": PARAMS}, TOKENS, cache=MODEL.allocate(1, T)))
