"""Published families: functions and named sizes, data without code."""

from llm_jax.models.families import (
    albert,
    bart,
    bert,
    bloom,
    falcon,
    gemma,
    gpt2,
    gpt_neox,
    gptj,
    llama,
    mistral,
    olmo2,
    opt,
    palm,
    phi3,
    qwen,
    starcoder,
    t5,
    xlnet,
)

MODULES = (
    gpt2,
    gptj,
    gpt_neox,
    opt,
    llama,
    mistral,
    qwen,
    phi3,
    olmo2,
    gemma,
    falcon,
    bloom,
    starcoder,
    palm,
    bert,
    albert,
    bart,
    t5,
    xlnet,
)
SIZES = {name: build for module in MODULES for name, build in module.SIZES.items()}
"""{name: function that gives the config} of all published sizes."""
