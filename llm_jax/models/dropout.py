"""Where a model drops, as one value: the rates at all places of a config, set and read together."""

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import ModelConfig, TransformerConfig
from llm_jax.models.heads import ClassHead

Config = TypeVar("Config", bound=ModelConfig)


@configclass
class Rates:
    """Share of each place that is dropped in training; None: what the model has stays."""

    embed: float | None = None
    """Of the embedding's features."""
    residual: float | None = None
    """Of what branches add to the stream."""
    attention: float | None = None
    """Of the weights of attention, cross attention included."""
    ffn: float | None = None
    """Of the inner features of an ffn, that of all tokens beside experts included."""
    experts: float | None = None
    """Of the inner features of experts."""
    final: float | None = None
    """Of what the final norm gives."""
    layers: float | None = None
    """Of whole blocks."""
    head: float | None = None
    """Of what the scores of classes read."""


def with_dropout(config: Config, rates: Rates) -> Config:
    """The same model with these rates.

    Raises:
      ValueError: for a rate above 0 at a place that the model does not have, such as weights of attention in a model
        without attention.
    """
    for name, rate in dataclasses.asdict(rates).items():
        check(
            not rate or bool(_found(config, name)),
            f"rates.{name} is {rate} and the model has no such place: leave it None",
        )
    if isinstance(config, TransformerConfig):
        return _side(config, rates)
    return dataclasses.replace(config, encoder=_side(config.encoder, rates), decoder=_side(config.decoder, rates))


def rates_of(config: ModelConfig) -> Rates:
    """The rate at each place, that of the last block where blocks differ; None where the model has no such place."""
    return Rates(**{field.name: (_found(config, field.name) or [None])[-1] for field in dataclasses.fields(Rates)})


def _found(config: ModelConfig, name: str) -> list[float]:
    """The rates at all places of this name."""
    return [rate for stack in config.stacks for place, rate in _places(stack) if place == name]


def _places(config: TransformerConfig) -> Iterator[tuple[str, float]]:
    """(name of a place, its rate) of one stack."""
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
    """One stack with those of the rates that it has a place for."""
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
    """With its field `dropout` set, where it has such and there is a rate."""
    return dataclasses.replace(part, dropout=rate) if rate is not None and hasattr(part, "dropout") else part
