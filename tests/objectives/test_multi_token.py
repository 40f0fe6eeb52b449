"""Prediction of several tokens from one position."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.core.trees import named_leaves
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig
from llm_jax.models import count
from llm_jax.models.build import applied, boxed_parameters, build
from llm_jax.models.families.deepseek import deepseek, experts
from llm_jax.models.multi_token_heads import ChainedHeads, ParallelHeads
from llm_jax.models.stack import Segment
from llm_jax.objectives import CausalLMConfig, MaskedLMConfig, MultiTokenConfig
from llm_jax.objectives.multi_token import later
from llm_jax.optim import AdamWConfig, Constant
from llm_jax.train.state import TrainState
from llm_jax.train.step import StepConfig, train_step
from tests.helpers import packed_rows, tiny

LLAMA = tiny.tiny_llama()
TWO = dataclasses.replace(LLAMA, segments=(dataclasses.replace(LLAMA.segments[0], repeats=1),) * 2)
CONFIGS = {
    "chained": dataclasses.replace(LLAMA, multi_token=ChainedHeads(3)),
    "parallel": dataclasses.replace(TWO, multi_token=ParallelHeads(3)),
}
OBJECTIVE = MultiTokenConfig(weight=0.5, chunks=2, z_loss=1e-2)


@functools.cache
def model_of(name):
    model = build(CONFIGS[name])
    return model, tiny.parameters(model)


@functools.cache
def gradient_of(name):
    """(params, batch) -> ((loss, metrics), gradient), compiled."""
    loss = functools.partial(OBJECTIVE.loss, model_of(name)[0])
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def batch_of(rows):
    return packed_rows.stacked(OBJECTIVE, rows)


# Documents of one, two and more tokens, and padding.
BATCH = batch_of([packed_rows.row([1, 2, 6], 0), packed_rows.row([3, 4], 2, seed=1)])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_that_of_whole_logits_of_each_token(name):
    model, params = model_of(name)
    (loss, metrics), _ = gradient_of(name)(params, BATCH)
    run = jax.jit(lambda: applied(model, params, BATCH.inputs, method="multi_token_hidden"))
    output, ahead = run()
    tokens = np.concatenate([BATCH.inputs.tokens_BT, BATCH.targets_BT[:, -1:]], axis=1)
    segments, total, found = BATCH.inputs.sequence.segment_ids_BT, 0.0, means(metrics)
    for distance, hidden_BTD in enumerate((output.hidden_BTD, *ahead), start=1):
        logits = np.asarray(applied(model, params, hidden_BTD, method="unembed"))
        log_z, nats = np.asarray(jax.nn.logsumexp(logits, axis=-1)), []
        for row, place in np.ndindex(*segments.shape):
            # Row 0 is full: its last token is in the document of those before it.
            own = np.append(segments[row], segments[row, -1])[place : place + distance + 1]
            if len(own) == distance + 1 and own.any() and len(set(own)) == 1:
                nats.append(log_z[row, place] - logits[row, place, tokens[row, place + distance]])
                total += (nats[-1] + 1e-2 * log_z[row, place] ** 2) * (1 if distance == 1 else 0.5)
        suffix = "" if distance == 1 else f"_{distance}"
        assert float(metrics[f"loss{suffix}"].count) == len(nats) == [11, 7, 4][distance - 1]
        assert found[f"loss{suffix}"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert float(loss) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_of_the_next_token_is_that_of_causal_language_modelling(name):
    model, params = model_of(name)
    plain = build(dataclasses.replace(CONFIGS[name], multi_token=None))
    weights = {part: leaf for part, leaf in params.items() if part != "multi_token"}
    causal = CausalLMConfig(chunks=2, z_loss=1e-2)
    _, metrics = jax.jit(functools.partial(causal.loss, plain))(weights, BATCH)
    assert means(gradient_of(name)(params, BATCH)[0][1])["loss"] == pytest.approx(means(metrics)["loss"], rel=1e-6)
    assert OBJECTIVE.predicts_text


@pytest.mark.parametrize("heads", [ChainedHeads(1), ParallelHeads(1)])
def test_one_token_is_causal_language_modelling(heads):
    params = tiny.parameters(build(TWO))
    one, plain = build(dataclasses.replace(TWO, multi_token=heads)), build(TWO)
    step = lambda objective, model: jax.jit(jax.value_and_grad(functools.partial(objective.loss, model), has_aux=True))  # noqa: E731
    found, expected = step(MultiTokenConfig(), one)(params, BATCH), step(CausalLMConfig(), plain)(params, BATCH)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    flops = MultiTokenConfig().training_flops(one.config, 16)
    assert flops == CausalLMConfig().training_flops(TWO, 16) == count.training_flops(TWO, 16)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_a_gradient(name):
    _, gradient = gradient_of(name)(model_of(name)[1], BATCH)
    for path, leaf in named_leaves(gradient):
        assert np.abs(leaf).max() > 1e-4, path
    assert any(path.startswith("multi_token/token_3") for path, _ in named_leaves(gradient))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_of_a_document_does_not_depend_on_what_is_packed_beside_it(name):
    gradient, (_, params) = gradient_of(name), model_of(name)
    first = packed_rows.row([5, 4])
    other = {field: array.copy() for field, array in first.items()}
    other["tokens"][5:] = (other["tokens"][5:] + 7) % 20
    alone = {field: np.where(np.arange(9) < 5, array, 0) for field, array in first.items()}

    def nats(row):
        """Summed loss of the first document, whose targets alone count."""
        batch = batch_of([row])
        weights = batch.loss_weights_BT * (batch.inputs.sequence.segment_ids_BT == 1)
        return float(gradient(params, batch.replace(loss_weights_BT=weights.astype(np.float32)))[0][0])

    assert nats(first) == pytest.approx(nats(other), rel=1e-5)
    assert nats(first) == pytest.approx(nats(alone), rel=1e-5)


def test_later_targets_are_those_of_the_same_document():
    row = packed_rows.row([1, 2, 6], unlike=True)
    batch = batch_of([row])
    for places in (1, 2, 5, 8, 20):
        found = jax.tree.map(np.asarray, later(batch, places))
        (counted,) = np.nonzero(found.loss_weights_BT[0])
        segments, distance = row["segment_ids"], places + 1
        assert list(counted) == [at for at in range(9 - distance) if segments[at] == segments[at + distance]]
        assert set(found.loss_weights_BT[0]) <= {0.0, 1.0}
        np.testing.assert_array_equal(found.targets_BT[0][counted], row["tokens"][counted + places + 1])


@pytest.mark.parametrize("name", CONFIGS)
def test_microbatches_combine_to_the_whole_batch(name):
    gradient, (_, params) = gradient_of(name), model_of(name)
    (whole, _), whole_gradient = gradient(params, BATCH)
    rows = [jax.tree.map(lambda x, row=row: x[row : row + 1], BATCH) for row in range(2)]
    parts = [gradient(params, row) for row in rows]
    assert float(whole) == pytest.approx(sum(float(loss) for (loss, _), _ in parts), rel=1e-5)
    total = jax.tree.map(jnp.add, *(one for _, one in parts))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), total, whole_gradient)


def test_experts_of_the_modules_are_balanced():
    """DeepSeek-V3: the modules have the experts of the last layer, whose biases follow the load."""
    layer = experts(4, 8, SigmoidConfig(top=2), 1)
    sizes = {"hidden": 24, "query_rank": None, "rank": 8, "head_dim": 4, "rotary_dim": 4, "value_dim": 4}
    config = deepseek(2, 2, 16, **sizes, vocab_size=32, max_length=16, layer=layer)
    model = build(dataclasses.replace(config, multi_token=ChainedHeads(2)))
    params = tiny.parameters(model)
    path = ("multi_token", "token_2", "block_0", "ffn", "router", "bias")
    _, metrics = jax.jit(functools.partial(MultiTokenConfig().loss, model))(params, BATCH)
    statistics = metrics["experts"].layers
    (name,) = (name for name in statistics if name.startswith("multi_token"))
    assert name == "/".join(path[:3])
    # Two experts for each of the ten inputs that another input of their document follows; others are padding.
    assert float(statistics[name].load_E.sum()) == 2 * 10
    optimizer = AdamWConfig(peak_lr=1e-3, schedule=Constant()).build(10, boxed_parameters(model))
    step = jax.jit(train_step(model, MultiTokenConfig(), optimizer, StepConfig(), seed=0))
    after, _ = step(TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), None), BATCH)
    before, moved = (functools.reduce(dict.__getitem__, path, tree) for tree in (params, after.params))
    np.testing.assert_allclose(np.abs(moved - before).max(), 0.001, rtol=1e-3)


REFUSED = {
    "CausalLMConfig does not train the modules of model.multi_token": lambda: CausalLMConfig().check(
        CONFIGS["chained"], 16
    ),
    "model.multi_token is None: set it to ParallelHeads or ChainedHeads, or use CausalLMConfig": lambda: (
        OBJECTIVE.check(LLAMA, 16)
    ),
    "requires a bidirectional model": lambda: MaskedLMConfig().check(CONFIGS["parallel"], 16),
    "weight is -1.0": lambda: MultiTokenConfig(weight=-1.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_means_nothing_is_refused(message):
    for config in CONFIGS.values():
        OBJECTIVE.check(config, 16)
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_flops_of_the_modules_are_counted():
    config = CONFIGS["parallel"]
    flops = OBJECTIVE.training_flops(config, 16) - CausalLMConfig().training_flops(TWO, 16)
    deeper = dataclasses.replace(TWO, segments=(*TWO.segments, Segment(TWO.segments[1].blocks, 2)))
    logits = 2 * (count.training_flops(TWO, 16) - count.training_flops(dataclasses.replace(TWO, head=None), 16))
    assert flops == count.training_flops(deeper, 16) - count.training_flops(TWO, 16) + logits
