"""The longest row of an imported model is the one that the scaling of its rotations is for, and is written back."""

import pytest

from llm_jax.interop.families import FAMILIES
from llm_jax.interop.settings import Settings

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 97}
QWEN_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
DEEPSEEK_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0}
GPT_OSS_YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
LINEAR, DYNAMIC = {"type": "linear", "factor": 4.0}, {"type": "dynamic", "factor": 2.0}
GEMMA3 = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}

LENGTHS = [
    # Published models, by their cards. Qwen 2.5 reaches 131,072 tokens by this option ("Processing long texts").
    ("qwen2", 32_768, QWEN_YARN, 131_072),
    ("qwen3", 32_768, QWEN_YARN, 131_072),
    ("deepseek_v3", 163_840, DEEPSEEK_YARN, 163_840),
    ("gpt_oss", 131_072, GPT_OSS_YARN, 131_072),
    ("llama", 131_072, LLAMA3, 131_072),
    ("gemma3_text", 131_072, GEMMA3, 131_072),
    ("llama", 4096, LINEAR, 16_384),
    ("llama", 4096, DYNAMIC, 8192),
    ("llama", 4096, {"type": "linear", "factor": 1.1}, 4505),
    ("llama", 4096, {"type": "yarn", "factor": 2.5}, 10_240),
    ("llama", 4096, {"type": "yarn", "original_max_position_embeddings": 1024}, 4096),
    ("llama", 4096, {"type": "linear", "factor": 0.5}, 4096),
    ("llama", 4096, None, 4096),
    ("falcon", 2048, LINEAR, 8192),
    ("falcon", 2048, DYNAMIC, 4096),
    ("gpt_neox", 2048, LINEAR, 8192),
    ("starcoder2", 2048, QWEN_YARN, 131_072),
    ("gemma", 2048, LINEAR, 8192),
    ("gemma2", 2048, LINEAR, 8192),
    ("mixtral", 2048, LINEAR, 8192),
]


@pytest.mark.parametrize(("kind", "stated", "scaling", "longest"), LENGTHS)
def test_scaling_extends_the_longest_row(kind: str, stated: int, scaling: dict | None, longest: int):
    own = {"rope_parameters": scaling} if kind == "gemma3_text" else {"rope_scaling": scaling}
    options = SHAPE | {"max_position_embeddings": stated, "num_key_value_heads": 4, "q_lora_rank": None} | own
    family = FAMILIES[kind]
    config = family.read(Settings(options))
    assert config.max_length == longest
    assert family.read(Settings(family.write(config))).max_length == longest


def test_dbrx_has_names_of_its_own():
    options = {
        "n_layers": 2,
        "n_heads": 4,
        "d_model": 32,
        "vocab_size": 97,
        "max_seq_len": 2048,
        "rope_scaling": LINEAR,
    }
    config = FAMILIES["dbrx"].read(Settings(options))
    assert config.max_length == 8192
    assert FAMILIES["dbrx"].write(config)["max_seq_len"] == 2048
