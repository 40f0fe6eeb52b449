"""A published family: how its config.json is read and written, and which leaves its tensors become."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop.fields import Table, arguments, options
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.models.architecture import architecture
from llm_jax.models.config import ModelConfig, TransformerConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """A `model_type` of Hugging Face's transformers."""

    model_type: str
    architecture: str
    """The transformers class that `save_hf` names in config.json."""
    build: Callable[..., ModelConfig]
    """The family's function; its arguments are those of `fields`."""
    fields: Table
    """The options of its config.json. Options that transformers ignores for this `model_type` are not listed."""
    tensors: Callable[[Any], Iterable[Tensor]]
    prefix: str = ""
    """Prefix of tensor names, absent in checkpoints of the base model without a head."""
    copies: dict[str, str] = dataclasses.field(default_factory=lambda: {"lm_head.weight": "model.embed_tokens.weight"})
    """Tied tensors that a checkpoint may hold twice: {copy: original}."""
    unread: tuple[str, ...] = ()
    """Regular expressions of tensors that are ignored unless the model has a leaf for them: buffers, and heads other
    than the one that is read."""
    absent: tuple[str, ...] = ()
    """Tensors that are read as zeros if a checkpoint lacks them."""
    counts_tokens: Callable[[Any], bool] = lambda config: False
    """Whether transformers counts positions, or the distances of linear biases, over real tokens only."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Renamed parts of tensor names in old checkpoints: (regular expression, present name)."""
    kind: type[ModelConfig] = TransformerConfig
    """Type of the config that `build` returns and the other functions take."""

    def read(self, settings: Settings) -> ModelConfig:
        """The model that a config.json describes. ValueError for an unsupported option; the message names it."""
        return self.build(**arguments(self.fields, settings))

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The options that `read` reads. For a config of another family this raises ValueError or returns options that
        `read` turns into a different config; `expresses` is False in both cases."""
        return options(self.fields, config)

    def expresses(self, config: ModelConfig) -> bool:
        """Whether a config.json of the family can express the architecture of `config`."""
        if not isinstance(config, self.kind):
            return False
        try:
            again = self.read(Settings(self.write(config)))
        except ValueError:
            return False
        return architecture(again) == architecture(config)

    def check_expresses(self, config: ModelConfig) -> None:
        """ValueError unless `expresses`."""
        check(
            self.expresses(config),
            f"a {self.model_type} config.json cannot express this model: omit `family` to search all families, or "
            "change the model",
        )
