"""A coefficient of a config.json becomes the balance losses by which transformers would train the model on."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.interop import load_hf
from llm_jax.interop.expert_tensors import balanced
from llm_jax.interop.model_inputs import model_inputs
from llm_jax.layers.ffn.routing import Choice, Routed, load
from llm_jax.models.families.mixtral import mixtral
from tests.parity.torch_models import CASES, Case

for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

ONE = {"num_hidden_layers": 1, "router_aux_loss_coef": 0.03}
FFN = CASES["dbrx"].options["ffn_config"] | {"moe_loss_weight": 0.03}
OF_ONE_LAYER = {
    "mixtral": ONE,
    "qwen2_moe": ONE,
    "qwen3_moe, mixed": ONE | {"num_hidden_layers": 2},
    "olmoe": ONE,
    "dbrx": {"n_layers": 1, "ffn_config": FFN},
    "gpt_oss": ONE,
}


def _told(case: Case, folder: Path) -> tuple[Any, float]:
    """What transformers' model tells of its routers, and the sum of our losses of a row."""
    import torch

    theirs = case.torch_model()
    theirs.save_pretrained(folder)
    with torch.no_grad():
        output = theirs(**{name: torch.from_numpy(x) for name, x in case.inputs.items()}, output_router_logits=True)
    model, params = load_hf(folder)
    aux = jax.jit(model.apply)({"params": params}, model_inputs(model, **case.inputs)).aux
    return output, sum(float(np.sum(layer.loss_B[..., 0]) + layer.batch.total) for layer in aux.values())


@pytest.mark.parametrize("name", OF_ONE_LAYER)
def test_one_layer_has_their_loss(name: str, tmp_path: Path):
    case = dataclasses.replace(CASES[name], options=CASES[name].options | OF_ONE_LAYER[name])
    output, ours = _told(case, tmp_path)
    np.testing.assert_allclose(ours, 0.03 * float(output.aux_loss), rtol=1e-5)


def test_switch_has_their_losses_of_one_row(tmp_path: Path):
    base = CASES["switch"]
    options = {"num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    options |= {"router_aux_loss_coef": 0.03, "router_z_loss_coef": 0.007}
    row = {"input_ids": base.inputs["input_ids"][:1], "decoder_input_ids": base.inputs["decoder_input_ids"][:1]}
    output, ours = _told(dataclasses.replace(base, options=base.options | options, inputs=row), tmp_path)
    load = output.encoder_aux_loss + output.decoder_aux_loss
    z = output.encoder_z_loss + output.decoder_z_loss
    np.testing.assert_allclose(ours, 0.03 * float(load) + 0.007 * float(z), rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_that_choose_alike_have_their_loss_and_its_gradients(layers: int):
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    theirs = [torch.from_numpy(logits).requires_grad_() for _ in range(layers)]
    expected = 0.03 * load_balancing_loss_func(tuple(theirs), 6, 2)
    expected.backward()
    segments = balanced(mixtral(layers, 2, 8, hidden=8, kv_heads=2, experts=6), 0.03).segments
    (loss,) = segments[0].blocks[0].ffn.balance

    def of_layer(logits_BTE: jax.Array) -> jax.Array:
        scores_BTE = jax.nn.softmax(logits_BTE)
        choice = Choice(jax.lax.top_k(logits_BTE, 2)[1], jnp.ones((1, 20, 2)))
        real_BT = jnp.ones((1, 20))
        routed = Routed(choice, logits_BTE, scores_BTE)
        return loss.weight * loss.of(loss.sums(routed, load(choice, 6, real_BT), real_BT))

    value, gradient = jax.value_and_grad(of_layer)(jnp.asarray(logits)[None])
    np.testing.assert_allclose(layers * value, expected.item(), rtol=1e-5)
    for layer in theirs:
        np.testing.assert_allclose(gradient[0], layer.grad.numpy(), rtol=1e-4, atol=1e-8)
