"""Losses of objectives are those of transformers' classes on the same batch."""

import importlib.util

import jax
import numpy as np
import pytest

from llm_jax.interop import load_hf
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.inputs import Inputs
from llm_jax.objectives import Batch, MaskedLMConfig, SpanCorruptionConfig
from llm_jax.objectives.classification import ClassificationConfig
from llm_jax.objectives.labelled_text import LabelledBatch
from tests.parity.torch_models import CASES

for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

DRAW = np.random.default_rng(0)


def models(name, folder):
    import torch

    theirs = CASES[name].torch_model()
    theirs.save_pretrained(folder)
    return *load_hf(folder), theirs, torch


def mean_loss(objective, model, params, batch):
    total, metrics = jax.jit(lambda params: objective.loss(model, params, batch))(params)
    return float(total) / float(metrics["loss"].count)


def sequence(real):
    return SequenceInfo(np.broadcast_to(np.arange(real.shape[1], dtype=np.int32), real.shape), real.astype(np.int32))


def padded(rows, length, shortest):
    """(tokens, which are real) of sequences with padding at their end."""
    lengths = DRAW.integers(shortest, length + 1, rows)
    lengths[0] = length
    return DRAW.integers(2, 30, (rows, length)).astype(np.int32), np.arange(length) < lengths[:, None]


def test_masked_language_modelling_is_berts(tmp_path):
    model, params, theirs, torch = models("bert, masked", tmp_path)
    tokens, real = padded(3, 10, 6)
    at = np.stack([np.sort(DRAW.choice(6, 2, replace=False)) for _ in range(3)]).astype(np.int32)
    targets, weights = DRAW.integers(2, 30, at.shape).astype(np.int32), np.ones(at.shape, np.float32)
    weights[1, 1] = 0  # this sequence has one prediction
    labels = np.full(tokens.shape, -100)
    for row in range(3):
        for column in range(2):
            if weights[row, column]:
                labels[row, at[row, column]] = targets[row, column]
    batch = Batch(Inputs(tokens, sequence(real)), targets, weights, at)
    arrays = {"input_ids": tokens, "attention_mask": real.astype(np.int64), "labels": labels}
    expected = theirs(**{name: torch.tensor(array).long() for name, array in arrays.items()}).loss.item()
    assert mean_loss(MaskedLMConfig(), model, params, batch) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "start"), [("t5", 0), ("bart", 0)])
def test_generation_of_a_target_is_that_of_encoder_decoders(tmp_path, name, start):
    model, params, theirs, torch = models(name, tmp_path)
    source, real = padded(3, 9, 4)
    target, there = padded(3, 7, 3)
    read = np.concatenate([np.full((3, 1), start, np.int32), target[:, :-1]], axis=1)
    batch = Batch(
        Inputs(read, sequence(there), encoder=Inputs(source, sequence(real))), target, there.astype(np.float32)
    )
    arrays = {
        "input_ids": source,
        "attention_mask": real,
        "decoder_input_ids": read,
        "labels": np.where(there, target, -100),
    }
    expected = theirs(**{key: torch.tensor(array).long() for key, array in arrays.items()}).loss.item()
    assert mean_loss(SpanCorruptionConfig(), model, params, batch) == pytest.approx(expected, rel=1e-5)


def test_classification_is_berts(tmp_path):
    model, params, theirs, torch = models("bert, row", tmp_path)
    tokens, real = padded(4, 8, 3)
    classes = model.config.head.classes
    labels = DRAW.integers(0, classes, 4).astype(np.int32)
    batch = LabelledBatch(Inputs(tokens, sequence(real)), labels, np.ones(4, np.float32))
    arrays = {"input_ids": tokens, "attention_mask": real, "labels": labels}
    expected = theirs(**{name: torch.tensor(array).long() for name, array in arrays.items()}).loss.item()
    assert mean_loss(ClassificationConfig(), model, params, batch) == pytest.approx(expected, rel=1e-5)
