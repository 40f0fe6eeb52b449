"""What an experiment says of its checkpoints. Apart from their writer, which needs orbax."""

from llm_jax.core.checks import check, check_not_negative, check_positive
from llm_jax.core.configclass import configclass


@configclass
class CheckpointConfig:
    """When to save and what to keep."""

    every: int = 500
    """Steps between two saves."""
    keep_last: int = 2
    """Newest checkpoints kept. With 1 there is nothing to fall back to if that one is damaged."""
    keep_best: int = 1
    """Checkpoints with the lowest `best_metric` kept beside the newest; one saved without a value is none."""
    best_metric: str = "validation/loss"
    """Held-out figure by which checkpoints are compared, lower being better: `<evaluation set>/<figure>`."""

    def __post_init__(self) -> None:
        check_positive(every=self.every, keep_last=self.keep_last)
        check_not_negative(keep_best=self.keep_best)
        check(bool(self.best_metric) or not self.keep_best, "best_metric is empty: name a metric or set keep_best to 0")
