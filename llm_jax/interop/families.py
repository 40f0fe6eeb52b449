"""Every `model_type` that can be imported and exported. `save_hf` uses the first that can express a model."""

from llm_jax.interop import (
    hf_bart,
    hf_bert,
    hf_bloom,
    hf_cohere,
    hf_dbrx,
    hf_deepseek,
    hf_distilbert,
    hf_falcon,
    hf_gemma,
    hf_gpt2,
    hf_gpt_neo,
    hf_gpt_neox,
    hf_gpt_oss,
    hf_gptj,
    hf_llama,
    hf_llama_variants,
    hf_mamba2,
    hf_mixtral,
    hf_nemotron,
    hf_opt,
    hf_phi,
    hf_recurrent_gemma,
    hf_starcoder,
    hf_switch,
    hf_t5,
    hf_xlnet,
)
from llm_jax.interop.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for module in (
        hf_gpt2,
        hf_gpt_neo,
        hf_gptj,
        hf_gpt_neox,
        hf_opt,
        hf_llama,
        hf_llama_variants,
        hf_cohere,
        hf_nemotron,
        hf_phi,
        hf_mixtral,
        hf_gemma,
        hf_falcon,
        hf_bloom,
        hf_starcoder,
        hf_bert,
        hf_distilbert,
        hf_bart,
        hf_t5,
        hf_switch,
        hf_deepseek,
        hf_dbrx,
        hf_gpt_oss,
        hf_recurrent_gemma,
        hf_mamba2,
        hf_xlnet,
    )
    for family in module.FAMILIES
}
