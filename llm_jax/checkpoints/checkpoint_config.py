"""The checkpoint config. Its module is separate from the writer, so that importing it does not import orbax."""

from llm_jax.core.checks import check, check_not_negative, check_positive
from llm_jax.core.configclass import configclass


@configclass
class CheckpointConfig:
    """When to save checkpoints, and which to keep."""

    every: int = 500
    """Steps between two saves."""
    keep_last: int = 2
    """Number of newest checkpoints to keep. With 1 there is no fallback if that one is damaged."""
    keep_best: int = 1
    """Number of checkpoints with the lowest `best_metric` to keep in addition. Those without a value do not count."""
    best_metric: str = "validation/loss"
    """Held-out metric by which checkpoints are compared, `<evaluation set>/<metric>`. Lower is better."""

    def __post_init__(self) -> None:
        check_positive(every=self.every, keep_last=self.keep_last)
        check_not_negative(keep_best=self.keep_best)
        check(
            bool(self.best_metric) or not self.keep_best,
            "best_metric is empty: set it to a metric, or set keep_best to 0",
        )
