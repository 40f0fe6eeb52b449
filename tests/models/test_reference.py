"""GPT-2 and LLaMA written out in numpy float64, from their papers, against the assembled models."""

import jax
import numpy as np
import pytest

from llm_jax.models.transformer import Transformer
from tests.helpers import tiny

TOKENS = tiny.tokens(1, 9)


def _softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def _layer_norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def _rms_norm(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def _project(x, p):
    """[T, D] -> [T, N, H]."""
    return np.einsum("td,dnh->tnh", x, p["kernel"]) + p.get("bias", 0)


def _attention(x, p, turn):
    q, k, v = (_project(x, p[name]) for name in ("query", "key", "value"))
    q, k = turn(q), turn(k)
    y = np.zeros(x.shape)
    for head in range(q.shape[1]):
        shared = head * k.shape[1] // q.shape[1]
        scores = q[:, head] @ k[:, shared].T / np.sqrt(q.shape[2])
        scores[np.triu_indices(len(x), 1)] = -np.inf
        y += _softmax(scores) @ v[:, shared] @ p["out"]["kernel"][head]
    return y + p["out"].get("bias", 0)


def _rotate(x):
    angles = np.arange(len(x))[:, None, None] * 10_000.0 ** (-2 * np.arange(x.shape[2] // 2) / x.shape[2])
    pairs = x[..., : x.shape[2] // 2] + 1j * x[..., x.shape[2] // 2 :]
    pairs = pairs * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def _dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def _gpt2_ffn(x, p):
    up = _dense(x, p["up"])
    return _dense(0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3))), p["down"])


def _llama_ffn(x, p):
    gate = _dense(x, p["gate"])
    return _dense(gate / (1 + np.exp(-gate)) * _dense(x, p["up"]), p["down"])


def _forward(x, params, norm, turn, ffn):
    layers = params["stack"]["segment_0"]["block_0"]
    for index in range(layers["mixer"]["query"]["kernel"].shape[0]):
        p = jax.tree.map(lambda leaf, index=index: leaf[index], layers)
        x = x + _attention(norm(x, p["mixer_norm"]), p["mixer"], turn)
        x = x + ffn(norm(x, p["ffn_norm"]), p["ffn"])
    return norm(x, params["final_norm"])


def _gpt2(params, tokens):
    embed = params["embed"]
    x = embed["table"][tokens] + embed["positions"]["table"][: len(tokens)]
    return _forward(x, params, _layer_norm, lambda x: x, _gpt2_ffn) @ embed["table"].T


def _llama(params, tokens):
    x = params["embed"]["table"][tokens]
    return _dense(_forward(x, params, _rms_norm, _rotate, _llama_ffn), params["head"])


@pytest.mark.parametrize(("family", "reference"), [("gpt2", _gpt2), ("llama", _llama)])
def test_a_family_is_its_paper(family, reference):
    model = Transformer(tiny.FAMILIES[family](layers=3))
    params = tiny.parameters(model)
    logits = jax.jit(lambda params: model.apply({"params": params}, TOKENS).logits_BTV)(params)
    expected = reference(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params), TOKENS[0])
    np.testing.assert_allclose(logits[0], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected).max() > 1
