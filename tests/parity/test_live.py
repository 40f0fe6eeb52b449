"""Every family's logits are those of transformers' own model, in both directions."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.interop import families, forward, load_hf, save_hf
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.model_inputs import model_inputs
from tests.parity.inputs import difference, torch_logits
from tests.parity.option_cases import OPTION_CASES
from tests.parity.torch_models import CASES, Case

for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: test_golden.py compares what it gave", allow_module_level=True)


def _cases():
    """Of the models that test_golden.py compares with their fixtures in every run, one of each family of tensors (a
    module of interop) is compared live in every run too; and all those that have no fixture."""
    import transformers

    tables = [module for module in vars(families).values() if hasattr(module, "FAMILIES")]
    modules = {family.model_type: module for module in tables for family in module.FAMILIES}
    seen = set()
    for name, case in CASES.items():
        module = modules[getattr(transformers, case.config).model_type]
        yield pytest.param(case, id=name, marks=pytest.mark.full(reason="test_golden.py") if module in seen else ())
        seen.add(module)
    for name, case in OPTION_CASES.items():
        yield pytest.param(case, id=name)


@pytest.mark.parametrize("case", _cases())
def test_logits_and_round_trip(case: Case, tmp_path: Path):
    import transformers

    theirs = case.torch_model()
    theirs.save_pretrained(tmp_path / "theirs")
    expected = torch_logits(theirs, **case.inputs)
    model, params = load_hf(tmp_path / "theirs")
    assert difference(forward(model, params, **case.inputs), expected, case.inputs) <= 1e-4
    kinds = [kind for kind, family in FAMILIES.items() if family.expresses(model.config)]
    assert theirs.config.model_type in kinds
    for kind in kinds:
        save_hf(model, params, tmp_path / kind, family=kind)
        (name,) = json.loads((tmp_path / kind / "config.json").read_text())["architectures"]
        # Where several families can say the same model, eager attention is right in all but Falcon.
        attention = "sdpa" if kind == "falcon" else "eager"
        again = getattr(transformers, name).from_pretrained(tmp_path / kind, attn_implementation=attention).eval()
        logits = torch_logits(again, **case.inputs)
        assert difference(logits, expected, case.inputs) <= (1e-6 if kind == theirs.config.model_type else 1e-5), kind


LEARNT = ["llama, biases", "deepseek_v3", "mamba2", "t5", "bert, masked", "xlnet, clamped"]
"""Every kind of model; the others' gradients are of functions that test_golden.py compares, by the same derivatives."""
FURTHER = ["gpt2", "gemma2", "bloom", "recurrent_gemma", "gpt_oss", "dbrx", "switch", "albert, masked", "bart", "umt5"]
FURTHER += ["cohere, normalised heads", "modernbert, masked", "bamba"]
_FULL = pytest.mark.full(reason="test_gradients_of_a_loss of every kind of model, and test_golden.py")


@pytest.mark.parametrize("name", [*LEARNT, *(pytest.param(name, marks=_FULL) for name in FURTHER)])
def test_gradients_of_a_loss(name: str, tmp_path: Path):
    import torch

    case = CASES[name]
    theirs = case.torch_model()
    theirs.save_pretrained(tmp_path)
    family = FAMILIES[theirs.config.model_type]
    # Tokens 0 and 1 are padding_idx to torch, whose vector gets no gradient.
    inputs = {key: np.maximum(array, 2) if key.endswith("input_ids") else array for key, array in case.inputs.items()}
    labels, real = _targets(inputs)
    logits = theirs(**{key: torch.from_numpy(array) for key, array in inputs.items()}).logits
    loss = torch.nn.functional.cross_entropy(logits[torch.from_numpy(real)], torch.from_numpy(labels[real]))
    loss.backward()

    model, params = load_hf(tmp_path)
    ours_inputs = model_inputs(model, **inputs)

    def ours(params):
        log_p_BTV = jax.nn.log_softmax(model.apply({"params": params}, ours_inputs).logits_BTV)
        return -jnp.mean(jnp.take_along_axis(log_p_BTV, labels[..., None], axis=-1)[real])

    value, gradients = jax.jit(jax.value_and_grad(ours))(params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    leaves, expected = dict(trees.named_leaves(gradients)), dict(theirs.named_parameters())
    for tensor in family.tensors(model.config):
        if tensor.name in dict(theirs.named_buffers()):
            continue  # transformers does not train BART's bias of scores
        parts = [np.asarray(leaves[leaf.path][leaf.index]) for leaf in tensor.leaves]
        found = expected[tensor.name].grad
        wanted = np.zeros(tensor.shape) if found is None else found.numpy()  # of XLNet's targets: here are none
        assert np.abs(tensor.join(parts) - wanted).max() <= 1e-4 * max(np.abs(wanted).max(), 1e-2), tensor.name


def _targets(inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The next token of every place, and which places count: real ones, but for the last."""
    tokens = inputs.get("decoder_input_ids", inputs["input_ids"])
    real = np.ones(tokens.shape, bool) if "decoder_input_ids" in inputs else inputs["attention_mask"].astype(bool)
    real[:, -1] = False
    return np.roll(tokens, -1, axis=1), real
