"""An evaluation declares the metrics that checkpoints can be compared by, and returns them."""

import pytest

from llm_jax.core.configclass import configclass
from llm_jax.evals import EvaluatedRun, Evaluation, Evaluator
from tests.helpers import tiny_run


@configclass
class CopyingConfig(Evaluation):
    """Measures nothing."""

    tokens: tuple[str, ...]

    def metrics(self, experiment):
        return ("copying/error",)

    def build(self, run: EvaluatedRun) -> Evaluator:
        raise NotImplementedError


def test_an_evaluation_may_have_fields_without_defaults_and_has_an_interval():
    assert (CopyingConfig(("error",)).every, CopyingConfig(("error",), every=7).every) == (500, 7)
    with pytest.raises(ValueError, match="every is 0"):
        CopyingConfig((), every=0)


def test_checkpoints_keep_the_metrics_that_are_declared(tmp_path):
    experiment, config = tiny_run.experiment(tmp_path), CopyingConfig(())
    found = {"copying": {"error": 0.5, "accuracy": 0.5}, "other": {"error": 1.0}}
    assert config.compared(experiment, found) == {"copying/error": 0.5}
    with pytest.raises(
        ValueError, match=r"CopyingConfig declares the metrics copying/error.* returned copying/errors:"
    ):
        config.compared(experiment, {"copying": {"errors": 0.5}})
