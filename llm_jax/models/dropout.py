"""All dropout rates of a model config as one value, to set and read them together."""

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import GeneratorDiscriminatorConfig, ModelConfig, TransformerConfig
from llm_jax.models.heads import ClassHead

Config = TypeVar("Config", bound=ModelConfig)


@configclass
class Rates:
    """Dropout rates in training; None: the model's own rate is kept."""

    embed: float | None = None
    """Rate of the embedding."""
    residual: float | None = None
    """Rate of the outputs of branches."""
    attention: float | None = None
    """Rate of the attention weights, including cross-attention."""
    ffn: float | None = None
    """Rate of the inner features of dense ffns, including shared experts."""
    experts: float | None = None
    """Rate of the inner features of routed experts."""
    final: float | None = None
    """Rate of the output of the final norm."""
    layers: float | None = None
    """Rate of whole blocks (layer drop)."""
    head: float | None = None
    """Rate of the input of the class scores."""


def with_dropout(config: Config, rates: Rates) -> Config:
    """The same model with these rates.

    Raises:
      ValueError: if a rate is above 0 and the model has no such part, such as attention weights in a model without
        attention.
    """
    for name, rate in dataclasses.asdict(rates).items():
        check(
            not rate or bool(_found(config, name)),
            f"rates.{name} is {rate} and the model has no such layer: set it to None",
        )
    if isinstance(config, TransformerConfig):
        return _side(config, rates)
    if isinstance(config, GeneratorDiscriminatorConfig):
        # The embedding is the discriminator's, with its dropout.
        generator = _side(config.generator, dataclasses.replace(rates, embed=None))
        return dataclasses.replace(config, generator=generator, discriminator=_side(config.discriminator, rates))
    return dataclasses.replace(config, encoder=_side(config.encoder, rates), decoder=_side(config.decoder, rates))


def rates_of(config: ModelConfig) -> Rates:
    """The rates of a model, those of the last block where blocks differ; None where the model has no such part."""
    return Rates(**{field.name: (_found(config, field.name) or [None])[-1] for field in dataclasses.fields(Rates)})


def _found(config: ModelConfig, name: str) -> list[float]:
    """All rates of this name in the config."""
    return [rate for stack in config.stacks for part, rate in _rates(stack) if part == name]


def _rates(config: TransformerConfig) -> Iterator[tuple[str, float]]:
    """Pairs (name, rate) of one stack."""
    yield "embed", config.embed.dropout
    yield "final", config.dropout
    if isinstance(config.head, ClassHead):
        yield "head", config.head.dropout
    for block in (block for segment in config.segments for block in segment.blocks):
        yield "residual", block.dropout
        yield "layers", block.layer_drop
        experts = block.ffn if isinstance(block.ffn, MoEConfig) else None
        for name, part in (
            ("attention", block.mixer),
            ("attention", block.cross),
            ("experts", experts and experts.expert),
            ("ffn", experts.shared if experts else block.ffn),
        ):
            rate = getattr(part, "dropout", None)
            if rate is not None:
                yield name, rate


def _side(config: TransformerConfig, rates: Rates) -> TransformerConfig:
    """One stack with the rates that apply to it."""
    segments = tuple(
        dataclasses.replace(segment, blocks=tuple(_block(block, rates) for block in segment.blocks))
        for segment in config.segments
    )
    config = dataclasses.replace(config, segments=segments, embed=_dropping(config.embed, rates.embed))
    if isinstance(config.head, ClassHead):
        config = dataclasses.replace(config, head=_dropping(config.head, rates.head))
    return _dropping(config, rates.final)


def _block(block: BlockConfig, rates: Rates) -> BlockConfig:
    parts = {name: _dropping(getattr(block, name), rates.attention) for name in ("mixer", "cross")}
    if isinstance(block.ffn, MoEConfig):
        expert, shared = _dropping(block.ffn.expert, rates.experts), _dropping(block.ffn.shared, rates.ffn)
        parts["ffn"] = dataclasses.replace(block.ffn, expert=expert, shared=shared)
    else:
        parts["ffn"] = _dropping(block.ffn, rates.ffn)
    block = _dropping(dataclasses.replace(block, **parts), rates.residual)
    return block if rates.layers is None else dataclasses.replace(block, layer_drop=rates.layers)


def _dropping(part: Any, rate: float | None) -> Any:
    """`part` with its field `dropout` set to `rate`; unchanged without such a field or rate."""
    return dataclasses.replace(part, dropout=rate) if rate is not None and hasattr(part, "dropout") else part
