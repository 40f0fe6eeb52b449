"""Builds the model of a config, and its parameters or their shapes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.dtypes import Precision
from llm_jax.layers.roles import unboxed
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.config import EncoderDecoderConfig, GeneratorDiscriminatorConfig, ModelConfig
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.generator_discriminator import GeneratorDiscriminator
from llm_jax.models.inputs import Inputs
from llm_jax.models.outputs import EncoderOutput
from llm_jax.models.transformer import Transformer
from llm_jax.sharding import partition

Model = Transformer | EncoderDecoder | GeneratorDiscriminator


def build(config: ModelConfig, precision: Precision = Precision()) -> Model:  # noqa: B008
    """The Flax module of `config`."""
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config, precision)
    if isinstance(config, GeneratorDiscriminatorConfig):
        return GeneratorDiscriminator(config, precision)
    return Transformer(config, precision)


def applied(model: Model, params: Any, *arguments: Any, method: str | None = None, rngs: Any = None) -> Any:
    """The result of a method of the model with these parameters: `Module.apply` without mutable variables."""
    return model.apply({"params": params}, *arguments, method=method, rngs=rngs)


def initial_parameters(model: Model, key: jax.Array) -> Any:
    """A newly initialised parameter tree; its leaves are boxed with their logical axes and roles."""
    # One token is enough: no shape of a parameter depends on the length of a sequence.
    return model.init(key, _smallest_inputs(model))["params"]


def _smallest_inputs(model: Model) -> Inputs:
    """One sequence of one token."""
    tokens, config = Inputs(jnp.zeros((1, 1), jnp.int32)), model.config
    if isinstance(config, EncoderDecoderConfig):
        return dataclasses.replace(tokens, encoder=tokens)
    if isinstance(config, GeneratorDiscriminatorConfig):
        return tokens
    if config.vocab_size is None:
        vectors = jnp.zeros((1, 1, config.embed.table_width(config.width)), model.precision.dtype)
        return Inputs(features_BTE=vectors)
    if config.has_cross_attention:
        hidden = jnp.zeros((1, 1, config.width), model.precision.dtype)
        sequence = SequenceInfo(jnp.zeros((1, 1), jnp.int32))
        return dataclasses.replace(tokens, encoded=EncoderOutput(hidden, sequence))
    return tokens


def boxed_parameters(model: Model) -> Any:
    """Shapes of the model's parameters, boxed with their logical axes and roles; nothing is allocated. Callers share
    the tree and must not change it."""
    hashable: Any = model  # Flax modules are hashable, but their type annotations do not declare it.
    return _boxed_parameters(hashable)


# Cached, because Linen runs the whole model to know its parameters, and a run asks for them several times.
@functools.lru_cache(maxsize=64)
def _boxed_parameters(model: Any) -> Any:
    return jax.eval_shape(lambda: initial_parameters(model, jax.random.key(0)))


def abstract_parameters(model: Model) -> tuple[Any, Any]:
    """Shapes and logical axes of the model's parameters; nothing is allocated."""
    boxed = boxed_parameters(model)
    return unboxed(boxed), partition.logical_axes(boxed)
