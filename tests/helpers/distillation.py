"""An objective with a frozen model: a student learns the distribution that a teacher gives (Hinton et al. 2015,
arXiv:1503.02531), and experiments with it.

Legend: B batch, T length, V vocabulary.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Ratio
from llm_jax.experiment import Experiment
from llm_jax.models.build import applied
from llm_jax.models.families.llama import llama
from llm_jax.objectives import Batch, Needs, TokenObjective
from llm_jax.optim import AdamWConfig, Constant
from llm_jax.starts import FrozenModel, RunStart
from llm_jax.train.step import StepConfig
from tests.helpers import tiny_run

TEACHER = llama(1, heads=2, width=24, hidden=32, kv_heads=1, vocab_size=259, max_length=64)


@configclass
class DistillationConfig(TokenObjective):
    """Cross-entropy between the teacher's distribution and the student's."""

    needs = Needs("causal", models=("teacher",))

    def check_frozen(self, model, frozen):
        super().check_frozen(model, frozen)
        sizes = model.vocab_size, frozen["teacher"].vocab_size
        check(sizes[0] == sizes[1], f"student and teacher have vocabularies of {sizes[0]} and {sizes[1]}: use one")

    def batch(self, rows):
        return Batch.next_tokens(rows)

    def loss(self, model, params, batch, key=None, whole=None, models=None):
        """The metric 'loss' is that cross-entropy; 'teacher' is the loss of the teacher itself."""
        rngs = None if key is None else {"dropout": key}
        student_BTV = _log(applied(model, params, batch.inputs, rngs=rngs))
        teacher_BTV = _log(applied(*models["teacher"], batch.inputs))
        cross_BT = -jnp.sum(jnp.exp(teacher_BTV) * student_BTV, axis=-1)
        true_BT = -jnp.take_along_axis(teacher_BTV, batch.targets_BT[..., None], axis=-1)[..., 0]
        loss = Ratio.of(cross_BT, batch.loss_weights_BT)
        return loss.total, {"loss": loss, "teacher": Ratio.of(true_BT, batch.loss_weights_BT)}


def _log(output: Any) -> jax.Array:
    return jax.nn.log_softmax(output.logits_BTV.astype(jnp.float32))


def teacher(folder: Path) -> Experiment:
    """The run of the teacher, with the corpus of `folder`."""
    optimizer, data = AdamWConfig(peak_lr=3e-2, schedule=Constant()), tiny_run.experiment(folder).data
    data = dataclasses.replace(data, batch_size=16)
    return tiny_run.experiment(
        folder, name="teacher", model=TEACHER, steps=20, update=StepConfig(), optimizer=optimizer, data=data
    )


def student(folder: Path, runs: Path, **changes: Any) -> Experiment:
    """A run that learns from the run `teacher` in `runs`."""
    frozen = (FrozenModel(name="teacher", model=TEACHER, start=RunStart(run=str(runs / "teacher"))),)
    default = tiny_run.experiment(folder, name="student", objective=DistillationConfig(), frozen=frozen)
    return dataclasses.replace(default, **changes)
