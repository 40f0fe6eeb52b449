"""What must hold for an encoder and a decoder that reads it, tried on published families that have every part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dtypes import MIXED
from llm_jax.layers.attention.kv_cache import Cache
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import build
from llm_jax.models.config import EncoderDecoderConfig
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.inputs import Inputs
from llm_jax.models.outputs import EncoderOutput
from llm_jax.models.transformer import Transformer
from llm_jax.models.upcycle import has_experts
from tests.helpers import tiny
from tests.helpers.published import PAIRS, PUBLISHED, covering

S, T = 8, 8
SOURCE, TARGET = tiny.tokens(2, S), tiny.tokens(2, T, seed=1)


def _place(*lengths: int, rows: int = 2) -> SequenceInfo:
    """Documents of these lengths one after the other and padding to the end, in all rows."""
    segments, positions = np.zeros((2, rows, T), np.int32)
    ends = np.cumsum(lengths)
    for number, (start, end) in enumerate(zip(ends - lengths, ends, strict=True), start=1):
        segments[:, start:end], positions[:, start:end] = number, np.arange(end - start)
    return SequenceInfo(positions, segments)


PACKED = (_place(3, 3), _place(2, 2))
"""Two pairs in a row of sources and a row of targets, each with padding."""
WHOLE = (_place(S), _place(T))


def _pair(source_BS, target_BT, source: SequenceInfo | None = None, target: SequenceInfo | None = None) -> Inputs:
    return Inputs(target_BT, target, encoder=Inputs(source_BS, source))


@dataclasses.dataclass
class Case:
    """A model with weights and the compiled passes that the tests share."""

    config: EncoderDecoderConfig

    def __post_init__(self):
        self.model = build(self.config)
        self.params = tiny.parameters(self.model)
        self.forward = jax.jit(lambda *arrays: self._apply(_pair(*arrays)).logits_BTV)
        self.encode = jax.jit(lambda *arrays: self._apply(Inputs(*arrays), method="encode"))
        self.decode = jax.jit(self._decode)

    def _apply(self, *inputs, **options):
        return self.model.apply({"params": self.params}, *inputs, **options)

    def _decode(self, tokens: jax.Array, encoded: EncoderOutput | None, place: SequenceInfo, cache: Cache):
        output = self._apply(Inputs(tokens, place, encoded=encoded), cache)
        return output.logits_BTV, output.cache


@pytest.fixture(scope="module", params=covering(PAIRS))
def case(request):
    return Case(PAIRS[request.param])


def _same(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def _influence(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of d hidden[t] / d embedding[s], [T, S] for the tokens of the source and [T, T] for those of the target."""
    width = case.config.decoder.width
    vectors = np.random.default_rng(0).normal(size=(2, 1, S, width)).astype(np.float32)
    source, target = (jax.tree.map(lambda array: array[:1], place) for place in PACKED)

    def sums(read_BSD: jax.Array, written_BTD: jax.Array) -> jax.Array:
        def run(model: EncoderDecoder) -> jax.Array:
            encoder = Inputs(sequence=source, features_BTE=read_BSD)
            return model.hidden(Inputs(sequence=target, features_BTE=written_BTD, encoder=encoder)).hidden_BTD

        return case._apply(method=run)[0] @ np.sin(np.arange(width))

    gradients = jax.jit(lambda *vectors: tiny.jacobian(sums, *vectors))(*vectors)
    return tuple(np.abs(gradient[:, 0]).max(axis=-1) for gradient in gradients)


def test_a_target_sees_what_stands_before_it_and_all_of_its_source_and_nothing_else(case):
    read, written = _influence(case)
    source, target = (place.segment_ids_BT[0] for place in PACKED)
    real = np.asarray(target) != 0
    sees = np.asarray(target[:, None] == source)
    assert (read[real][sees[real]] > 1e-6).all()
    assert (read[real][~sees[real]] == 0).all()
    before = np.asarray(target[:, None] == target) & np.tril(np.ones((T, T), bool))
    assert (written[real][before[real]] > 1e-6).all()
    assert (written[real][~before[real]] == 0).all()


def test_every_token_of_a_source_sees_all_of_its_document(case):
    encoder = Transformer(case.config.encoder)
    source = jax.tree.map(lambda array: array[:1], PACKED[0])
    weights_D = np.sin(np.arange(case.config.width))

    def sums(x_BSD: jax.Array) -> jax.Array:
        inputs = Inputs(sequence=source, features_BTE=x_BSD)
        return encoder.apply({"params": case.params["encoder"]}, inputs, method="hidden").hidden_BTD[0] @ weights_D

    x_BSD = np.random.default_rng(0).normal(size=(1, S, case.config.width)).astype(np.float32)
    (gradient,) = jax.jit(lambda x_BSD: tiny.jacobian(sums, x_BSD))(x_BSD)
    influence = np.abs(gradient[:, 0]).max(axis=-1)
    segments = np.asarray(source.segment_ids_BT[0])
    sees, real = segments[:, None] == segments, segments != 0
    assert (influence[real][sees[real]] > 1e-6).all() and (influence[real][~sees[real]] == 0).all()


def test_packed_pairs_are_as_if_alone(case):
    """Rows without padding or places."""
    packed = case.forward(SOURCE, TARGET, *PACKED)
    _same(packed[:, :2], case.forward(SOURCE[:, :3], TARGET[:, :2]))
    _same(packed[:, 2:4], case.forward(SOURCE[:, 3:6], TARGET[:, 2:4]))
    # Without the source's segments all of it is one document.
    source, target = PACKED
    mixed = case.forward(SOURCE, TARGET, source.replace(segment_ids_BT=np.ones((2, S), np.int32)), target)
    assert np.abs(packed - mixed)[:, :2].max() > 1e-2


def test_a_target_without_a_source_reads_no_other(case):
    source, target = _place(7), PACKED[1]  # of two targets only the first one has a source
    other = SOURCE.copy()
    other[:, :7] = (other[:, :7] + 1) % tiny.VOCAB
    logits, changed = (case.forward(rows, TARGET, source, target) for rows in (SOURCE, other))
    np.testing.assert_array_equal(logits[:, 2:4], changed[:, 2:4])
    assert np.abs(logits - changed)[:, :2].max() > 1e-2 and np.isfinite(logits).all()


def test_padding_of_the_source_changes_nothing(case):
    padded, place = SOURCE.copy(), _place(5)
    padded[:, 5:] = (padded[:, 5:] + 1) % tiny.VOCAB
    logits = case.forward(SOURCE, TARGET, place, WHOLE[1])
    np.testing.assert_array_equal(logits, case.forward(padded, TARGET, place, WHOLE[1]))
    left = jax.tree.map(lambda array: np.roll(array, 3, axis=1), place)
    _same(case.forward(np.roll(SOURCE, 3, axis=1), TARGET, left, WHOLE[1]), logits)


def test_padding_of_the_target_changes_nothing(case):
    padded, place = TARGET.copy(), _place(5)
    padded[:, 5:] = (padded[:, 5:] + 1) % tiny.VOCAB
    logits = case.forward(SOURCE, TARGET, WHOLE[0], place)
    np.testing.assert_array_equal(logits[:, :5], case.forward(SOURCE, padded, WHOLE[0], place)[:, :5])
    _same(logits[:, :5], case.forward(SOURCE, TARGET, *WHOLE)[:, :5])
    left = jax.tree.map(lambda array: np.roll(array, 3, axis=1), place)
    _same(case.forward(SOURCE, np.roll(TARGET, 3, axis=1), WHOLE[0], left)[:, 3:], logits[:, :5])


@pytest.mark.parametrize(("lengths", "sources"), [((4, 4), (6, 6)), ((4, 2), (6, 3))])
def test_targets_share_a_cache_with_what_follows_them(case, lengths, sources):
    """Only the first call has the encoder output. Shorter targets have padding and continue from their own ends."""
    lengths, steps = np.array(lengths), np.tile(np.arange(4, dtype=np.int32), (2, 1))
    source = SequenceInfo(WHOLE[0].positions_BT, np.int32(np.arange(S) < np.array(sources)[:, None]))
    begin = SequenceInfo(steps, np.int32(np.arange(4) < lengths[:, None]))
    first, cache = case.decode(TARGET[:, :4], case.encode(SOURCE, source), begin, case.model.allocate(2, T + 2, S))
    parts = []
    for step in range(4):
        part, cache = case.decode(
            TARGET[:, 4 + step, None], None, SequenceInfo(np.int32(lengths + step)[:, None]), cache
        )
        parts.append(part)
    assert cache.length == T
    second = np.concatenate(parts, axis=1)
    for row, length in enumerate(lengths):
        target = np.concatenate([TARGET[row, :length], TARGET[row, 4:], TARGET[row, length:4]])
        alone = case.forward(SOURCE, np.tile(target, (2, 1)), source, WHOLE[1])[row]
        _same(first[row, :length], alone[:length])
        _same(second[row], alone[length : length + 4])


def test_source_and_target_matter(case):
    logits = case.forward(SOURCE, TARGET, *WHOLE)
    for changed in ((np.roll(SOURCE, 1, axis=1), TARGET), (SOURCE, np.roll(TARGET, 1, axis=1))):
        assert np.abs(case.forward(*changed, *WHOLE) - logits).max() > 1e-2


@pytest.mark.parametrize("name", ["t5, 1.1", "bart"])
def test_the_table_that_encoder_and_decoder_share_learns_from_both(name):
    """Its gradient is that of an encoder's copy and that of the decoder's, together."""
    case = Case(PAIRS[name])
    assert "table" not in case.params["encoder"].get("embed", {})
    config = case.config
    own = build(
        dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, vocab_size=config.decoder.vocab_size))
    )
    embed = case.params["encoder"].get("embed", {}) | {"table": case.params["decoder"]["embed"]["table"]}
    apart = case.params | {"encoder": case.params["encoder"] | {"embed": embed}}

    def loss(model, params):
        return jnp.mean(jnp.sin(model.apply({"params": params}, _pair(SOURCE, TARGET)).logits_BTV))

    value, gradient = jax.jit(jax.value_and_grad(lambda params: loss(case.model, params)))(case.params)
    wanted, expected = jax.jit(jax.value_and_grad(lambda params: loss(own, params)))(apart)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    one, other = (expected[side]["embed"]["table"] for side in ("encoder", "decoder"))
    assert np.abs(one).max() > 1e-6 and np.abs(other).max() > 1e-6
    np.testing.assert_allclose(gradient["decoder"]["embed"]["table"], one + other, rtol=1e-3, atol=1e-6)


def test_bfloat16_is_finite_and_near_to_float32(case):
    model = build(case.config, MIXED)
    output = jax.jit(lambda: model.apply({"params": case.params}, _pair(SOURCE, TARGET, *WHOLE)))()
    exact = case.forward(SOURCE, TARGET, *WHOLE)
    assert output.logits_BTV.dtype == jnp.float32 and output.hidden_BTD.dtype == jnp.bfloat16
    assert np.isfinite(output.logits_BTV).all()
    errors = np.abs(output.logits_BTV - exact).max(axis=-1) / np.abs(exact).max()
    # Rounding gives a token another expert here and there, and what sees it another token to see.
    error = np.median(errors) if has_experts(case.config) else errors.max()
    assert 0 < error < 0.1


def test_inputs_that_a_model_lacks_or_cannot_use_are_refused():
    case, decoder = Case(PAIRS["bart"]), Transformer(PUBLISHED["gpt2"])
    encoded = EncoderOutput(np.zeros((2, S, 16), np.float32), WHOLE[0])
    with pytest.raises(ValueError, match="blocks have `cross` attention and inputs have no `encoded`"):
        case._apply(Inputs(TARGET))
    with pytest.raises(ValueError, match="inputs are of type ndarray: an encoder-decoder requires Inputs"):
        case._apply(TARGET)
    with pytest.raises(ValueError, match="inputs have `encoder` and `encoded`: set one of them"):
        case._apply(Inputs(TARGET, encoder=Inputs(SOURCE), encoded=encoded))
    with pytest.raises(ValueError, match="inputs have the output of an encoder, and no block of the model has `cross`"):
        decoder.init(jax.random.key(0), Inputs(TARGET, encoded=encoded))
    with pytest.raises(ValueError, match="inputs have an `encoder`, and the model is a single stack"):
        decoder.init(jax.random.key(0), _pair(SOURCE, TARGET))
    for inputs in (Inputs(), Inputs(TARGET, features_BTE=np.zeros((2, T, 16), np.float32))):
        with pytest.raises(ValueError, match="of tokens_BT and features_BTE: exactly one is required"):
            decoder.init(jax.random.key(0), inputs)


def test_rows_and_caches_longer_than_the_model_are_refused():
    case, long = Case(PAIRS["t5"]), tiny.tokens(2, 17)
    for rows in ((long, TARGET), (SOURCE, long)):
        with pytest.raises(ValueError, match="17 tokens and the model's max_length is 16"):
            jax.eval_shape(case._apply, _pair(*rows))
    with pytest.raises(ValueError, match="17 tokens exceeds the model's max_length of 16"):
        case.model.allocate(1, 17, 4)
