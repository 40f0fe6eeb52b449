"""Configs of frozen models, which an objective runs beside the trained one."""

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.models.build import Model, build
from llm_jax.models.config import ModelConfig
from llm_jax.starts.start import Start


@configclass(kw_only=True)
class FrozenModel:
    """A model that is not trained, such as a teacher or a reference. Its weights are loaded once, have no optimizer
    state, are sharded as those of the trained model, and are stored once for all checkpoints of a run."""

    name: str
    """The name by which the objective knows it (`Needs.models`)."""
    model: ModelConfig
    start: Start
    """Where its weights are loaded from. A resumed run reads them from its own checkpoints."""
    precision: Precision | None = None
    """None: the precision of the experiment."""

    def __post_init__(self):
        check(
            self.name.isidentifier(),
            f"a frozen model has the name {self.name!r}: it becomes part of parameter names, so it must be an "
            "identifier, such as 'teacher'",
        )

    def build(self, precision: Precision) -> Model:
        """The Flax module.

        Args:
          precision: that of the experiment.
        """
        return build(self.model, self.precision or precision)
