"""Next-token prediction on packed rows."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.core.trees import named_leaves
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.expert_choice import ExpertChoiceConfig
from llm_jax.layers.ffn.routers.sinkhorn import SinkhornConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.build import build
from llm_jax.models.families.bert import bert
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.families.t5 import t5
from llm_jax.models.heads import ClassHead
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.causal_lm import CausalLMConfig
from tests.helpers import tiny


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request):
    return Transformer(tiny.FAMILIES[request.param]())


@pytest.fixture(scope="module")
def params(model):
    return tiny.parameters(model)


@pytest.fixture(scope="module")
def gradient(model):
    """(params, batch) -> ((loss, metrics), gradient), compiled."""
    objective = CausalLMConfig(chunks=2, z_loss=1e-2)
    return jax.jit(jax.value_and_grad(lambda params, batch: objective.loss(model, params, batch), has_aux=True))


def _plain(model, params, batch, z_loss):
    """The same from whole logits."""
    logits = model.apply({"params": params}, batch.inputs).logits_BTV
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets_BT[..., None], axis=-1)[..., 0]
    return jnp.sum(batch.loss_weights_BT * (nll + z_loss * log_z**2)), nll


def test_loss_and_gradients_are_those_of_whole_logits(model, params, gradient):
    batch = tiny.batch(4)
    assert 0 < batch.loss_weights_BT.mean() < 1
    (loss, metrics), actual = gradient(params, batch)
    plain = jax.jit(jax.value_and_grad(lambda params: _plain(model, params, batch, 1e-2), has_aux=True))
    (expected, nll), wanted = plain(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert means(metrics)["loss"] == pytest.approx(float(np.average(nll, weights=batch.loss_weights_BT)), rel=1e-5)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_every_parameter_has_a_gradient(params, gradient):
    _, actual = gradient(params, tiny.batch(4))
    for name, leaf in named_leaves(actual):
        # A bias on the keys adds the same to all scores of a query, which softmax does not see.
        assert (np.abs(leaf).max() > 1e-4) == (not name.endswith("key/bias")), name


def test_targets_on_padding_or_in_another_document_cost_nothing(params, gradient):
    batch = tiny.batch(4)
    uncounted = batch.loss_weights_BT == 0
    last = np.zeros_like(uncounted)
    crossing = batch.inputs.sequence.segment_ids_BT[:, :-1] != batch.inputs.sequence.segment_ids_BT[:, 1:]
    last[:, :-1] = crossing
    assert (
        (uncounted & last & (batch.inputs.sequence.segment_ids_BT == 1)).any(axis=1).all()
    )  # the end of each first document
    other = batch.replace(targets_BT=np.where(uncounted, (batch.targets_BT + 1) % tiny.VOCAB, batch.targets_BT))
    (loss, metrics), actual = gradient(params, batch)
    (other_loss, other_metrics), other_gradient = gradient(params, other)
    assert loss == other_loss
    assert float(metrics["loss"].count) == float(other_metrics["loss"].count) == (~uncounted).sum()
    jax.tree.map(np.testing.assert_array_equal, actual, other_gradient)
    counted = batch.replace(targets_BT=(batch.targets_BT + 1) % tiny.VOCAB)
    assert abs(gradient(params, counted)[0][0] - loss) > 1e-2


def test_the_loss_of_a_row_does_not_depend_on_its_neighbours_or_packing(params, gradient):
    batch = tiny.batch(4)
    whole = gradient(params, batch)[0][0]
    rows = [jax.tree.map(lambda x, row=row: np.repeat(x[row : row + 1], 4, axis=0), batch) for row in range(4)]
    parts = [gradient(params, row)[0][0] / 4 for row in rows]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


def test_an_untrained_model_knows_nothing(model, gradient):
    make = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    params = jax.tree.map(lambda box: box.value, make(), is_leaf=lambda leaf: hasattr(leaf, "value"))
    (_, metrics), _ = gradient(params, tiny.batch(4))
    assert means(metrics)["loss"] == pytest.approx(math.log(tiny.VOCAB), rel=0.01)


def test_dropout_needs_a_key_and_depends_on_it():
    model = Transformer(tiny.tiny_gpt2(dropout=0.5))
    params, batch = tiny.parameters(model), tiny.batch(2)
    loss = jax.jit(lambda key: CausalLMConfig().loss(model, params, batch, key)[0])
    plain = Transformer(tiny.tiny_gpt2(dropout=0.0))
    without = jax.jit(lambda: CausalLMConfig().loss(plain, params, batch)[0])()
    np.testing.assert_allclose(loss(None), without, rtol=1e-6)
    first, again, other = (float(loss(jax.random.key(seed))) for seed in (0, 0, 1))
    assert first == again
    assert len({first, other, float(without)}) == 3


def test_a_packed_row_becomes_an_example_unchanged():
    row = {"tokens": np.arange(3)}
    examples = CausalLMConfig().examples(tiny.tiny_llama(), None, 2)
    assert examples.row(row, np.random.default_rng(0)) is row and not examples.changes_documents


@pytest.mark.parametrize(("field", "value"), [("z_loss", -1.0), ("chunks", 0)])
def test_bad_values_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        CausalLMConfig(**{field: value})


def test_batches_are_pytrees_of_the_stated_types():
    batch = tiny.batch(3)
    assert isinstance(batch, Batch)
    assert [leaf.dtype for leaf in jax.tree.leaves(batch)] == [np.int32] * 4 + [np.float32]
    assert {leaf.shape for leaf in jax.tree.leaves(batch)} == {(3, 8)}


OTHERS = {
    "AttentionConfig of the model is not causal: give mixers the mask Causal": bert(2, 4, 16),
    "requires a head of type HeadConfig or TiedHead and the model's is ClassHead": dataclasses.replace(
        tiny.tiny_gpt2(), head=ClassHead(3)
    ),
    "blocks of the model have `cross` attention": t5(2, 4, 16, hidden=24).decoder,
}


@pytest.mark.parametrize("message", OTHERS)
def test_models_for_which_it_means_nothing_are_refused(message):
    CausalLMConfig().check(tiny.tiny_llama(), 16)
    with pytest.raises(ValueError, match=message):
        CausalLMConfig().check(OTHERS[message], 16)


AHEAD = {
    "ExpertChoiceConfig": lambda **allowed: (ExpertChoiceConfig(2, **allowed), Dropless()),
    "SinkhornConfig": lambda **allowed: (SinkhornConfig(**allowed), Dropless()),
    "Capacity": lambda **allowed: (SoftmaxConfig(1, normalized=False), Capacity(priority="score", **allowed)),
}


@pytest.mark.parametrize("name", AHEAD)
def test_experts_that_tell_tokens_of_later_ones_are_refused_unless_that_is_meant(name):
    def model(**allowed):
        return with_experts(tiny.tiny_llama(), MoEConfig(4, GLUConfig(8), *AHEAD[name](**allowed)), [1])

    with pytest.raises(ValueError, match=f"and {name} of the model is not causal.* set allow_future=True"):
        CausalLMConfig().check(model(), 16)
    with pytest.raises(
        ValueError, match=f"{name} of the model is not causal: generation token by token requires a causal model"
    ):
        Generator(build(model()), SamplingConfig(), 0, 0)
    with pytest.raises(ValueError, match=f"{name} of the decoder is not causal"):
        pair = t5(2, 4, 16, hidden=24)
        dataclasses.replace(pair, decoder=with_experts(pair.decoder, model().experts[0], [1]))
    CausalLMConfig().check(model(allow_future=True), 16)
