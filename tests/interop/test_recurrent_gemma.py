"""What the config.json of RecurrentGemma may say."""

import pytest

from llm_jax.interop.families import FAMILIES
from llm_jax.interop.settings import Settings
from llm_jax.models.architecture import architecture
from llm_jax.models.families.recurrent_gemma import SIZES, recurrent_gemma
from llm_jax.models.heads import HeadConfig

FAMILY = FAMILIES["recurrent_gemma"]
# Of the 2B model, rotations as older files have them.
OPTIONS = {
    "attention_window_size": 2048,
    "conv1d_width": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2560,
    "intermediate_size": 15360,
    "logits_soft_cap": 30.0,
    "lru_width": 2560,
    "num_attention_heads": 10,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
KINDS = ["recurrent", "recurrent", "attention"]


@pytest.mark.parametrize("name", ["block_types", "_block_types"])
def test_the_options_of_the_2b_model_are_its_size(name: str):
    config = FAMILY.read(Settings(OPTIONS | {name: KINDS}))
    assert architecture(config) == architecture(SIZES["recurrentgemma-2b"]())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 128}, "head_dim = 128: only 256 is supported"),
        ({"intermediate_size": 7}, "intermediate_size = 7: it must be even"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "LinearScaling: RecurrentGemma has no RoPE scaling"),
        ({"block_types": ["recurrent", "full"]}, "pattern is 'full'"),
    ],
)
def test_what_it_cannot_mean_is_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FAMILY.read(Settings(OPTIONS | options))


def test_scores_have_a_matrix_of_their_own_where_they_are_not_tied():
    assert isinstance(FAMILY.read(Settings(OPTIONS | {"tie_word_embeddings": False})).head, HeadConfig)


def test_a_model_of_one_kind_of_layer_is_none_that_the_file_can_say():
    for kind in ("recurrent", "attention"):
        assert not FAMILY.expresses(recurrent_gemma(2, 2, 8, hidden=8, pattern=(kind,)))
    assert FAMILY.expresses(recurrent_gemma(2, 2, 8, hidden=8, pattern=("attention", "recurrent")))
