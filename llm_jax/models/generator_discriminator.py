"""A generator of replaced tokens and the discriminator that finds them, with one embedding.

Legend: B batch, T length, D model width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from llm_jax.core.dtypes import Precision
from llm_jax.models.config import GeneratorDiscriminatorConfig
from llm_jax.models.heads import Head
from llm_jax.models.inputs import Inputs
from llm_jax.models.outputs import Output
from llm_jax.models.transformer import Transformer
from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain


class GeneratorDiscriminator(nn.Module):
    """Tokens -> for every token the score of being a replaced one (Clark et al. 2020, arXiv:2003.10555, 3).

    It is called like `Transformer`; the output is the discriminator's. `generator_hidden` and `generator_unembed` run
    the generator, which only training does.
    """

    config: GeneratorDiscriminatorConfig
    precision: Precision = Precision()

    def setup(self):
        self.generator = Transformer(self.config.generator, self.precision)
        self.discriminator = Transformer(self.config.discriminator, self.precision)
        self.generator_head = Head(self.config.head, *self.config.head_sizes, self.precision)

    def __call__(self, inputs: Inputs | jax.Array) -> Output:
        """Hidden states and scores [B, T, 1] of every token.

        Raises:
          ValueError: as in `Transformer`.
        """
        if self.is_initializing():
            self.generator_unembed(self.generator_hidden(inputs).hidden_BTD)
        return self.scored(self.hidden(inputs))

    def hidden(self, inputs: Inputs | jax.Array) -> Output:
        """`__call__` without the scores."""
        return _under("discriminator", self.discriminator.hidden(inputs))

    def unembed(self, hidden_BTD: jax.Array) -> jax.Array:
        """Float32 scores of hidden states of the discriminator, as in `Output.logits_BTV`."""
        return self.discriminator.unembed(hidden_BTD)

    def scored(self, output: Output) -> Output:
        """`output` with the scores of its hidden states."""
        return self.discriminator.scored(output)

    def generator_hidden(self, inputs: Inputs | jax.Array) -> Output:
        """Hidden states of the generator, without logits."""
        inputs, embed = Inputs.of(inputs), self.discriminator.embed
        shared_BTE = embed.summed(embed.tokens(inputs.ids_BT), inputs.located())
        return _under("generator", self.generator.run(shared_BTE, inputs))

    def generator_unembed(self, hidden_BTD: jax.Array) -> jax.Array:
        """Float32 logits [B, T, V] of hidden states of the generator."""
        logits_BTV = self.generator_head(hidden_BTD, self.discriminator.embed.attend)
        return constrain(logits_BTV, axes.BATCH, axes.LENGTH, axes.VOCAB)

    def unembed_parameters(self, params: Any) -> Any:
        """The subset of the model's parameters that `unembed` reads."""
        return {"discriminator": {"head": params["discriminator"]["head"]}}

    def generator_unembed_parameters(self, params: Any) -> Any:
        """The subset of the model's parameters that `generator_unembed` reads."""
        head = {"generator_head": params["generator_head"]} if "generator_head" in params else {}
        return head | {"discriminator": {"embed": params["discriminator"]["embed"]}}


def _under(name: str, output: Output) -> Output:
    """`output` with the paths of its statistics in the parameters of the whole model."""
    return dataclasses.replace(output, aux={f"{name}/{path}": one for path, one in output.aux.items()})
