"""Gradient norms of each parameter during training."""

from typing import Any

from llm_jax.core.checks import check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.trees import named_leaves
from llm_jax.train.hook_config import HookConfig, TrainingRun
from llm_jax.train.loop import Hook


@configclass
class GradientNormsConfig(HookConfig):
    """Records `gradient_norms` in metrics.jsonl: the gradient norm of each parameter before clipping, by its path. The
    repeated layers of a segment are one parameter. The report of the run plots the norms."""

    every: int = 10
    """Steps between two records."""

    def __post_init__(self):
        check_positive(every=self.every)

    def build(self, run: TrainingRun) -> Hook:
        return _GradientNorms(self.every, run)


class _GradientNorms(Hook):
    """Records norms that the loop has already fetched, so the device never waits."""

    def __init__(self, every: int, run: TrainingRun):
        self._every, self._run = every, run

    def on_gradient_norms(self, step: int, norms: Any) -> None:
        if step % self._every == 0:
            self._run.record("gradient_norms", step, **{path: float(norm) for path, norm in named_leaves(norms)})
