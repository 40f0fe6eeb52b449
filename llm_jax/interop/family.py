"""What joins a published family to ours: how its config.json reads, how it is written, where its tensors go."""

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
    """Name of the class that `save_hf` writes for."""
    build: Callable[..., ModelConfig]
    """The family's function, with arguments of the names that `fields` give."""
    fields: Table
    """The options of its config.json, and none that transformers does not honour for this `model_type`."""
    tensors: Callable[[Any], Iterable[Tensor]]
    prefix: str = ""
    """Start of tensor names that checkpoints of the bare model, without its head, leave out."""
    copies: dict[str, str] = dataclasses.field(default_factory=lambda: {"lm_head.weight": "model.embed_tokens.weight"})
    """Tensors that a checkpoint with tied weights may hold twice: {the copy: the original}."""
    unread: tuple[str, ...] = ()
    """Regular expressions of tensors that a checkpoint may carry and that are left out where the model has no place for
    them: buffers that hold no weights, and heads beside the one that is read."""
    absent: tuple[str, ...] = ()
    """Tensors that are zeros where a checkpoint lacks them."""
    counts_tokens: Callable[[Any], bool] = lambda config: False
    """Whether transformers counts positions, or the distances of linear biases, over real tokens only."""
    renamed: tuple[tuple[str, str], ...] = ()
    """What parts of names were called in old checkpoints: (regular expression, name now)."""
    kind: type[ModelConfig] = TransformerConfig
    """What `build` gives; the other functions are given no other type."""

    def read(self, settings: Settings) -> ModelConfig:
        """The model that a config.json describes. ValueError for options that are not supported, by name."""
        return self.build(**arguments(self.fields, settings))

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The options that `read` reads. Of a config that is none of the family's: ValueError, or options that read as
        another config, and each means no."""
        return options(self.fields, config)

    def expresses(self, config: ModelConfig) -> bool:
        """Whether a config.json of the family can say all that matters of `config`."""
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
            f"a {self.model_type} config.json cannot say all of this model: leave out `family` to have one found, or "
            "change the model",
        )
