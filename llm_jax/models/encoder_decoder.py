"""An encoder and a decoder, connected by cross-attention.

Legend: B batch, S source length, T target length, D model width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from llm_jax.core.checks import check
from llm_jax.core.dtypes import Precision
from llm_jax.layers.attention.kv_cache import Cache
from llm_jax.models.config import EncoderDecoderConfig
from llm_jax.models.inputs import Inputs
from llm_jax.models.outputs import EncoderOutput, Output
from llm_jax.models.stack import Aux
from llm_jax.models.transformer import Transformer


class EncoderDecoder(nn.Module):
    """Source and target tokens -> logits of the next target tokens (Vaswani et al. 2017, arXiv:1706.03762, 3).

    It is called like `Transformer`, with `inputs.encoder` in addition to the decoder tokens.
    """

    config: EncoderDecoderConfig
    precision: Precision = Precision()

    def setup(self):
        self.encoder = Transformer(self.config.encoder, self.precision)
        self.decoder = Transformer(self.config.decoder, self.precision)

    def __call__(self, inputs: Inputs, cache: Cache | None = None) -> Output:
        """Hidden states and logits of every decoder token.

        Args:
          inputs: inputs of the decoder. `encoder`, or its output `encoded`, is required in a call without a KV cache
            and in the first call with one.
          cache: KV cache of earlier decoder tokens, from `allocate`.

        Raises:
          ValueError: as in `Transformer`, for the encoder or the decoder.
        """
        return self.scored(self.hidden(inputs, cache))

    def hidden(self, inputs: Inputs, cache: Cache | None = None) -> Output:
        """`__call__` without the logits."""
        check(
            isinstance(inputs, Inputs),
            f"inputs are of type {type(inputs).__name__}: an encoder-decoder requires Inputs(tokens, "
            "encoder=Inputs(...))",
        )
        if inputs.encoder is not None:
            check(inputs.encoded is None, "inputs have `encoder` and `encoded`: set one of them")
            encoded = self.encode(inputs.encoder)
            inputs = dataclasses.replace(inputs, encoder=None, encoded=encoded)
        output = self.decoder.hidden(inputs, cache)
        aux = {} if inputs.encoded is None else inputs.encoded.aux
        return dataclasses.replace(output, aux=aux | _under("decoder", output.aux))

    def encode(self, inputs: Inputs | jax.Array) -> EncoderOutput:
        """The encoder output for the source."""
        inputs = Inputs.of(inputs)
        if self.config.encoder.vocab_size is None and inputs.features_BTE is None:
            # One table serves both stacks.
            output = self.encoder.run(self.decoder.embed.tokens(inputs.ids_BT), inputs)
        else:
            output = self.encoder.hidden(inputs)
        return EncoderOutput(output.hidden_BTD, inputs.located(), _under("encoder", output.aux))

    def unembed(self, hidden_BTD: jax.Array) -> jax.Array:
        """Float32 logits of hidden states of the decoder, as in `Output.logits_BTV`."""
        return self.decoder.unembed(hidden_BTD)

    def scored(self, output: Output) -> Output:
        """`output` with the logits of its hidden states, if the decoder has a head."""
        return self.decoder.scored(output)

    def unembed_parameters(self, params: Any) -> Any:
        """The subset of the model's parameters that `unembed` reads."""
        return {"decoder": self._own_decoder().unembed_parameters(params["decoder"])}

    def allocate(self, batch: int, slots: int, encoder_length: int) -> Cache:
        """An empty KV cache for targets of up to `slots` tokens and sources of `encoder_length` tokens.

        Raises:
          ValueError: if `slots` exceeds the maximum length of the decoder, or the decoder is not causal.
        """
        return self._own_decoder().allocate(batch, slots, encoder_length)

    def _own_decoder(self) -> Transformer:
        # Outside `apply`, flax requires `parent=None` for a module that another module creates.
        return Transformer(self.config.decoder, self.precision, parent=None)


def _under(name: str, aux: Aux) -> Aux:
    return {f"{name}/{path}": one for path, one in aux.items()}
