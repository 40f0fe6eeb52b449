"""What CPUs compute once or again changes no number, and is nothing on other platforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dtypes import Precision
from llm_jax.layers.activations import ACTIVATIONS, GATED
from llm_jax.layers.reuse import computed_again, computed_once
from llm_jax.models.build import initial_parameters
from llm_jax.models.families.llama import llama
from llm_jax.models.transformer import Transformer
from llm_jax.sharding.platforms import tracing_for


def _operations(function, *arguments):
    counts = {}
    for platform in ("cpu", "gpu", "tpu"):
        with tracing_for(platform):
            counts[platform] = str(jax.make_jaxpr(lambda *given: function(*given))(*arguments)).count
    return counts


@pytest.mark.parametrize(
    ("function", "name"), [(computed_once, "dot_general"), (computed_again, "optimization_barrier")]
)
def test_it_is_one_operation_on_cpus_and_none_elsewhere(function, name):
    counts = _operations(lambda x: function(jnp.sin(x)) * 2, jnp.ones((3, 4)))
    assert {platform: count(name) for platform, count in counts.items()} == {"cpu": 1, "gpu": 0, "tpu": 0}


@pytest.mark.parametrize("function", [computed_once, computed_again])
def test_it_changes_no_bit(function):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 16)) * 1e3, jnp.float32)
    np.testing.assert_array_equal(jax.jit(function)(x), x)


def test_angles_are_computed_once_for_all_heads_layers_and_both_passes():
    text = _gradients_of(Transformer(llama(2, 2, 16, hidden=24, vocab_size=32, max_length=16), Precision()))
    assert [text.count(f" {name}(") for name in ("cosine", "sine")] == [1, 1]


def _gradients_of(model):
    """The compiled gradients of a model's parameters."""
    params, tokens = jax.eval_shape(lambda: initial_parameters(model, jax.random.key(0))), jnp.zeros((2, 16), jnp.int32)
    loss = lambda params: jnp.sum(model.apply({"params": params}, tokens).logits_BTV ** 2)  # noqa: E731
    return jax.jit(jax.grad(loss)).lower(params).compile().as_text()


@pytest.mark.parametrize("gated", [False, True])
def test_an_activation_keeps_its_inputs_only(gated):
    """Of the arrays that are as large as the inner width, the program has the products, what the next product reads,
    and their gradients: nothing that the forward pass computed on the way."""
    x, into, out = jnp.ones((24, 8)), jnp.ones((1 + gated, 8, 40)), jnp.ones((40, 8))
    function = GATED["silu"] if gated else ACTIVATIONS["gelu_tanh"]

    def loss(into, out):
        return jnp.sum((function(*(x @ matrix for matrix in into)) @ out) ** 2)

    text = jax.jit(jax.grad(loss, (0, 1))).lower(into, out).compile().as_text()
    entry = text[text.index("\nENTRY") :].splitlines()
    made = [line.split(" = ")[1].split("(%")[0] for line in entry if " = " in line and "get-tuple-element" not in line]
    assert sum(shapes.count("f32[24,40]") for shapes in made) == 2 * (len(into) + 1)
