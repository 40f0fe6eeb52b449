"""What the LSTM of Zaremba et al. says of its layers."""

import flax.linen as nn
import jax
import numpy as np

from llm_jax.models.families.lstm import lstm
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny


def test_dropout_acts_before_and_after_a_layer():
    model = Transformer(lstm(1, 64, vocab_size=tiny.VOCAB, max_length=16, dropout=0.5))
    params = tiny.parameters(model)
    tokens = tiny.tokens(2, 16)

    def hidden(rngs):
        output = model.apply(
            {"params": params}, tokens, rngs=rngs, method="hidden", capture_intermediates=_is_of_interest
        )
        kept = output[1]["intermediates"]
        return np.asarray(kept["embed"]["__call__"][0]), np.asarray(output[0].hidden_BTD)

    embedded, after = hidden({"dropout": jax.random.key(0)})
    plain_embedded, plain_after = hidden({})
    for dropped, plain in ((embedded, plain_embedded), (after, plain_after)):
        assert 0.45 < (dropped == 0).mean() < 0.55 and (plain != 0).all()
    np.testing.assert_allclose(embedded[embedded != 0], 2 * plain_embedded[embedded != 0], rtol=1e-6)


def _is_of_interest(module: nn.Module, method: str) -> bool:
    return method == "__call__" and module.name == "embed"
