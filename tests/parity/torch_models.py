"""Small random models of transformers, one or more a family: what ours must equal.

Vocabularies are odd, key/value heads fewer than heads, and every vector (bias, norm) is moved away from 0 and 1, so
that a wrong map cannot hide. torch and transformers are imported when a model is asked for.
"""

import dataclasses
from typing import Any

import numpy as np

from tests.parity.inputs import (
    ONE_TYPE,
    ORDERED,
    PADDED_LEFT,
    PAIR,
    PAIR_AFTER_PADDING,
    SENTENCES,
    TEXT,
    TEXT_RIGHT,
)

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}
GQA = SHAPE | {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
LATENT = {"q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14}
DENSE = SHAPE | LATENT | {"num_key_value_heads": 4, "intermediate_size": 48, "first_k_dense_replace": 3}
DENSE |= {"max_position_embeddings": 64}
OLD = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 97, "n_positions": 64}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GRIFFIN = SHAPE | {"num_hidden_layers": 4, "intermediate_size": 96, "attention_window_size": 5}
BAMBA = GQA | {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 12, "mamba_chunk_size": 8}
MAMBA2 = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 97, "num_heads": 8, "head_dim": 8, "chunk_size": 8}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LEARNT_BUFFERS = ("final_logits_bias", "e_score_correction_bias")
"""Ends of names of what training moves without gradients, or once did."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One model: names of its classes in transformers, and options of its config."""

    config: str
    model: str
    options: dict[str, Any]
    attention: str = "eager"
    """Which of transformers' implementations of attention is meant."""
    inputs: dict[str, np.ndarray] = dataclasses.field(default_factory=lambda: TEXT)
    untied: bool = False
    """Whether the head is given a matrix of its own, which transformers does only when it loads one."""
    gain: float = 4.0
    """Factor of the random matrices: small ones would hide errors, with large ones a softmax amplifies rounding."""

    def torch_model(self) -> Any:
        """The model, in evaluation mode, float32."""
        import torch
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options)
        config._attn_implementation = self.attention
        model = getattr(transformers, self.model)(config).eval().float()
        if self.untied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name.endswith(LEARNT_BUFFERS):
                    buffer += 0.2 * torch.randn_like(buffer)
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    continue  # sinusoids
                if parameter.ndim == 1 or name.endswith("norm.weight"):
                    parameter += 0.2 * torch.randn_like(parameter)
                else:
                    parameter *= self.gain
        return model


ENCODER = SHAPE | {"intermediate_size": 48, "max_position_embeddings": 64}
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 97, "max_position_embeddings": 64}
ENCODERS = {
    "bert": ("Bert", ENCODER | {"type_vocab_size": 3}, SENTENCES),
    "roberta": ("Roberta", ENCODER | {"max_position_embeddings": 66, "type_vocab_size": 1}, ONE_TYPE),
    "electra": ("Electra", ENCODER | {"embedding_size": 20}, SENTENCES),
    "albert": (
        "Albert",
        ENCODER | {"embedding_size": 20, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
        SENTENCES,
    ),
}
HEADS = {
    "masked": "ForMaskedLM",
    "row": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}


def _encoders() -> dict[str, Case]:
    cases = {
        f"{name}, {head}": Case(f"{prefix}Config", prefix + kind, options | _labels(head), inputs=inputs)
        for name, (prefix, options, inputs) in ENCODERS.items()
        for head, kind in HEADS.items()
    }
    prefix, options, inputs = ENCODERS["electra"]
    wide = options | {"embedding_size": 32}
    return cases | {
        "xlm-roberta, masked": Case(
            "XLMRobertaConfig", "XLMRobertaForMaskedLM", ENCODERS["roberta"][1], inputs=ONE_TYPE
        ),
        "camembert, row": Case(
            "CamembertConfig",
            "CamembertForSequenceClassification",
            ENCODERS["roberta"][1] | _labels("row"),
            inputs=ONE_TYPE,
        ),
        **{
            f"mpnet, {head}": Case("MPNetConfig", f"MPNet{kind}", ENCODER | _labels(head), inputs=ONE_TYPE)
            for head, kind in HEADS.items()
        },
        "distilbert, masked": Case("DistilBertConfig", "DistilBertForMaskedLM", DISTILBERT, inputs=ONE_TYPE),
        "distilbert, row": Case(
            "DistilBertConfig", "DistilBertForSequenceClassification", DISTILBERT | _labels("row"), inputs=ONE_TYPE
        ),
        "distilbert, span": Case("DistilBertConfig", "DistilBertForQuestionAnswering", DISTILBERT, inputs=ONE_TYPE),
        "electra, replaced": Case("ElectraConfig", "ElectraForPreTraining", options, inputs=inputs),
        "electra, as wide": Case("ElectraConfig", "ElectraForMaskedLM", wide, inputs=inputs),
        "bert, a number": Case(
            "BertConfig", "BertForSequenceClassification", ENCODERS["bert"][1] | {"num_labels": 1}, inputs=SENTENCES
        ),
    }


MODERN = SHAPE | {"num_hidden_layers": 4, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}
BIASED = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}


def _modern() -> dict[str, Case]:
    def case(kind: str, **options: Any) -> Case:
        return Case("ModernBertConfig", f"ModernBert{kind}", MODERN | options, inputs=ONE_TYPE)

    ropes = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
    }
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    return {
        "modernbert, masked": case("ForMaskedLM", local_attention=9),
        "modernbert, row": case("ForSequenceClassification", local_attention=4, **BIASED, **_labels("row")),
        "modernbert, token": case("ForTokenClassification", classifier_activation="relu", num_labels=1),
        "modernbert, span": case(
            "ForQuestionAnswering",
            local_attention=6,
            layer_types=kinds,
            rope_parameters=ropes,
            hidden_activation="silu",
        ),
    }


T5 = {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "vocab_size": 97}
NEAR = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}
MARIAN = BART | {"pad_token_id": 0, "decoder_start_token_id": 0, "scale_embedding": True, "activation_function": "relu"}


def _pairs() -> dict[str, Case]:
    classes = ("T5Config", "T5ForConditionalGeneration")
    gated = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return {
        "t5": Case(*classes, T5 | NEAR, inputs=PAIR, gain=2),
        "t5, 1.1": Case(*classes, gated, inputs=PAIR, untied=True, gain=2),
        "mt5": Case("MT5Config", "MT5ForConditionalGeneration", T5 | NEAR, inputs=PAIR, untied=True, gain=2),
        "umt5": Case("UMT5Config", "UMT5ForConditionalGeneration", T5 | NEAR, inputs=PAIR, untied=True, gain=1),
        "bart": Case("BartConfig", "BartForConditionalGeneration", BART, inputs=PAIR),
        "bart, padded before": Case("BartConfig", "BartForConditionalGeneration", BART, inputs=PAIR_AFTER_PADDING),
        "mbart": Case("MBartConfig", "MBartForConditionalGeneration", BART | {"scale_embedding": True}, inputs=PAIR),
        "pegasus": Case("PegasusConfig", "PegasusForConditionalGeneration", BART, inputs=PAIR),
        "marian": Case("MarianConfig", "MarianMTModel", MARIAN, inputs=PAIR),
    }


EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
FINE = EXPERTS | {"num_experts_per_tok": 3, "moe_intermediate_size": 20}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "n_shared_experts": 2}
ROUTED |= {"first_k_dense_replace": 1, "routed_scaling_factor": 1.5}
DBRX = {"d_model": 32, "n_heads": 4, "n_layers": 3, "vocab_size": 97, "max_seq_len": 64}
SWITCH = T5 | NEAR | {"num_layers": 4, "num_decoder_layers": 3, "num_experts": 4, "router_jitter_noise": 0.01}


def _experts() -> dict[str, Case]:
    def case(prefix: str, options: dict[str, Any], **facts: Any) -> Case:
        return Case(f"{prefix}Config", f"{prefix}ForCausalLM", options, **facts)

    ffn = {"ffn_hidden_size": 20, "moe_num_experts": 6, "moe_top_k": 2}
    return {
        "mixtral": case("Mixtral", GQA | {"num_local_experts": 6}),
        "mixtral, window": case("Mixtral", GQA | {"num_local_experts": 3, "sliding_window": 5, "head_dim": 12}),
        "qwen2_moe": case("Qwen2Moe", GQA | FINE | {"shared_expert_intermediate_size": 28}),
        "qwen2_moe, normalized": case(
            "Qwen2Moe",
            GQA | FINE | {"shared_expert_intermediate_size": 28, "norm_topk_prob": True, "decoder_sparse_step": 2},
        ),
        "qwen3_moe": case("Qwen3Moe", GQA | FINE | {"head_dim": 12, "norm_topk_prob": True}),
        "qwen3_moe, mixed": case("Qwen3Moe", GQA | FINE | {"head_dim": 12, "mlp_only_layers": [1]}),
        "olmoe": case("Olmoe", GQA | EXPERTS),
        "olmoe, clipped": case("Olmoe", GQA | EXPERTS | {"clip_qkv": 0.7, "norm_topk_prob": True}),
        "deepseek_v2, experts": case("DeepseekV2", DENSE | ROUTED),
        "deepseek_v2, groups": case(
            "DeepseekV2",
            DENSE | ROUTED | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        ),
        "deepseek_v3, experts": case("DeepseekV3", DENSE | ROUTED | {"n_group": 4, "topk_group": 2}),
        "dbrx": case(
            "Dbrx",
            DBRX
            | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 0.7, "rope_theta": 20_000.0}, "ffn_config": ffn}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}},
        ),
        "gpt_oss": case(
            "GptOss",
            GQA
            | {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 12, "sliding_window": 5}
            | _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, truncate=False),
        ),
        "switch": Case(
            "SwitchTransformersConfig",
            "SwitchTransformersForConditionalGeneration",
            SWITCH | {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1},
            inputs=PAIR,
            gain=2,
        ),
    }


XLNET = {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48, "vocab_size": 97}


def _xlnet() -> dict[str, Case]:
    def case(kind: str, inputs: dict[str, np.ndarray] = PADDED_LEFT, **options: Any) -> Case:
        return Case("XLNetConfig", f"XLNet{kind}", XLNET | options, inputs=inputs)

    without_order = {name: array for name, array in ORDERED.items() if name != "perm_mask"}
    return {
        "xlnet": case("LMHeadModel"),
        "xlnet, ordered": case("LMHeadModel", ORDERED),
        "xlnet, targets without order": case("LMHeadModel", without_order),
        "xlnet, clamped": case("LMHeadModel", PADDED_LEFT | {"perm_mask": ORDERED["perm_mask"]}, clamp_len=5),
        "xlnet, row": case("ForSequenceClassification", **_labels("row")),
        "xlnet, token": case("ForTokenClassification", **_labels("token")),
        "xlnet, span": case("ForQuestionAnsweringSimple"),
    }


def _labels(head: str) -> dict[str, Any]:
    return {"num_labels": 5} if head in ("row", "token") else {}


def _rope(**options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, **options}}


CASES = {
    "gpt2": Case("GPT2Config", "GPT2LMHeadModel", OLD | NO_DROPOUT),
    "gpt_neo": Case(
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "vocab_size": 97, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local"], 2]], "window_size": 5},
        gain=2,
    ),
    "codegen": Case("CodeGenConfig", "CodeGenForCausalLM", OLD | NO_DROPOUT | {"n_head": 8, "rotary_dim": 2}),
    "gptj": Case("GPTJConfig", "GPTJForCausalLM", OLD | NO_DROPOUT | {"rotary_dim": 4}),
    "gpt_neox": Case("GPTNeoXConfig", "GPTNeoXForCausalLM", SHAPE | {"intermediate_size": 48}),
    "gpt_neox, serial": Case(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        SHAPE | {"intermediate_size": 48, "use_parallel_residual": False, "rotary_pct": 1.0},
    ),
    "opt": Case(
        "OPTConfig",
        "OPTForCausalLM",
        SHAPE | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64, "dropout": 0.0},
    ),
    "opt, 350m": Case(
        "OPTConfig",
        "OPTForCausalLM",
        SHAPE
        | {"ffn_dim": 48, "word_embed_proj_dim": 20, "do_layer_norm_before": False}
        | {"max_position_embeddings": 64, "dropout": 0.0},
    ),
    "llama": Case("LlamaConfig", "LlamaForCausalLM", GQA | {"tie_word_embeddings": True}),
    "llama, biases": Case("LlamaConfig", "LlamaForCausalLM", GQA | {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": Case("LlamaConfig", "LlamaForCausalLM", GQA | {"head_dim": 12}),
    "llama, linear": Case("LlamaConfig", "LlamaForCausalLM", GQA | _rope(rope_type="linear", factor=2.0)),
    "llama, dynamic": Case(
        "LlamaConfig",
        "LlamaForCausalLM",
        GQA | {"max_position_embeddings": 16} | _rope(rope_type="dynamic", factor=2.0),
    ),
    "llama, llama3": Case(
        "LlamaConfig", "LlamaForCausalLM", GQA | _rope(**LLAMA3, original_max_position_embeddings=16)
    ),
    "llama, yarn": Case(
        "LlamaConfig",
        "LlamaForCausalLM",
        GQA | _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    "mistral": Case("MistralConfig", "MistralForCausalLM", GQA | {"sliding_window": 5}),
    "qwen2": Case("Qwen2Config", "Qwen2ForCausalLM", GQA),
    "qwen2, windows": Case(
        "Qwen2Config",
        "Qwen2ForCausalLM",
        GQA | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": Case("Qwen3Config", "Qwen3ForCausalLM", GQA | {"head_dim": 12}),
    "phi3": Case("Phi3Config", "Phi3ForCausalLM", GQA | {"sliding_window": 7, "pad_token_id": 0}),
    "phi3, longrope": Case(
        "Phi3Config",
        "Phi3ForCausalLM",
        GQA
        | {"pad_token_id": 0, "original_max_position_embeddings": 16}
        | _rope(
            rope_type="longrope",
            short_factor=[1.0, 1.1, 1.2, 1.3],
            long_factor=[1.5, 2.0, 3.0, 4.0],
            original_max_position_embeddings=16,
        ),
    ),
    "olmo2": Case("Olmo2Config", "Olmo2ForCausalLM", GQA),
    "olmo3": Case(
        "Olmo3Config",
        "Olmo3ForCausalLM",
        GQA
        | {"num_hidden_layers": 4, "sliding_window": 5}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "smollm3": Case("SmolLM3Config", "SmolLM3ForCausalLM", GQA | {"pad_token_id": 0, "no_rope_layer_interval": 2}),
    "smollm3, windows": Case(
        "SmolLM3Config",
        "SmolLM3ForCausalLM",
        GQA
        | {"pad_token_id": 0, "no_rope_layers": [0, 1, 1], "use_sliding_window": True, "sliding_window": 5}
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "exaone4": Case("Exaone4Config", "Exaone4ForCausalLM", GQA | {"sliding_window": 5, "sliding_window_pattern": 2}),
    "exaone4, all": Case(
        "Exaone4Config",
        "Exaone4ForCausalLM",
        GQA | {"sliding_window": None, "layer_types": ["full_attention"] * 3, "head_dim": 12},
    ),
    "ernie4_5": Case("Ernie4_5Config", "Ernie4_5ForCausalLM", GQA | {"head_dim": 12, "use_bias": True}),
    "glm": Case("GlmConfig", "GlmForCausalLM", GQA | {"head_dim": 12, "pad_token_id": 0}),
    "glm4": Case("Glm4Config", "Glm4ForCausalLM", GQA | {"head_dim": 12, "pad_token_id": 0, "attention_bias": False}),
    "stablelm": Case("StableLmConfig", "StableLmForCausalLM", GQA | {"use_qkv_bias": True}),
    "stablelm, parallel": Case("StableLmConfig", "StableLmForCausalLM", GQA | {"use_parallel_residual": True}),
    "cohere": Case("CohereConfig", "CohereForCausalLM", GQA),
    "cohere, normalised heads": Case("CohereConfig", "CohereForCausalLM", GQA | {"use_qk_norm": True}),
    "cohere2": Case(
        "Cohere2Config",
        "Cohere2ForCausalLM",
        GQA
        | {"num_hidden_layers": 4, "sliding_window": 5, "sliding_window_pattern": 2, "logit_scale": 0.5}
        | {"attention_bias": True},
    ),
    "phi": Case("PhiConfig", "PhiForCausalLM", GQA | {"partial_rotary_factor": 0.5}),
    "olmo": Case("OlmoConfig", "OlmoForCausalLM", GQA | {"clip_qkv": 0.7}),
    "granite": Case(
        "GraniteConfig",
        "GraniteForCausalLM",
        GQA
        | {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4, "logits_scaling": 4.0}
        | {"tie_word_embeddings": True, "mlp_bias": True, "attention_bias": True},
    ),
    "granitemoe": Case(
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        GQA
        | {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4, "logits_scaling": 4.0}
        | {"tie_word_embeddings": True, "num_local_experts": 6, "num_experts_per_tok": 2},
    ),
    "nemotron": Case("NemotronConfig", "NemotronForCausalLM", GQA | {"head_dim": 12, "mlp_bias": True}, gain=2),
    "persimmon": Case("PersimmonConfig", "PersimmonForCausalLM", GQA | {"partial_rotary_factor": 0.5}, gain=2),
    "persimmon, without norms": Case(
        "PersimmonConfig", "PersimmonForCausalLM", GQA | {"qk_layernorm": False, "hidden_act": "gelu"}
    ),
    "gemma": Case("GemmaConfig", "GemmaForCausalLM", GQA | {"head_dim": 12}),
    "gemma2": Case(
        "Gemma2Config", "Gemma2ForCausalLM", GQA | {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 5}
    ),
    "gemma3": Case(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        GQA
        | {"num_hidden_layers": 7, "head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 5}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "falcon, 7b": Case("FalconConfig", "FalconForCausalLM", SHAPE),
    "falcon, 40b": Case(
        "FalconConfig", "FalconForCausalLM", SHAPE | {"new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "falcon, alibi": Case(
        "FalconConfig",
        "FalconForCausalLM",
        SHAPE | {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
        # transformers 5 adds the linear biases twice where its attention is eager.
        attention="sdpa",
    ),
    "bloom": Case("BloomConfig", "BloomForCausalLM", {"hidden_size": 48, "n_layer": 3, "n_head": 6, "vocab_size": 97}),
    "mpt": Case("MptConfig", "MptForCausalLM", {"d_model": 48, "n_layers": 3, "n_heads": 6, "vocab_size": 97}),
    "gpt_bigcode": Case("GPTBigCodeConfig", "GPTBigCodeForCausalLM", OLD | NO_DROPOUT),
    "gpt_bigcode, heads": Case("GPTBigCodeConfig", "GPTBigCodeForCausalLM", OLD | NO_DROPOUT | {"multi_query": False}),
    "starcoder2": Case(
        "Starcoder2Config", "Starcoder2ForCausalLM", GQA | {"sliding_window": 5, "residual_dropout": 0.0}
    ),
    **_encoders(),
    **_modern(),
    **_pairs(),
    "deepseek_v3": Case("DeepseekV3Config", "DeepseekV3ForCausalLM", DENSE),
    "deepseek_v3, yarn": Case(
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        DENSE
        | {"q_lora_rank": None}
        | _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0),
    ),
    "deepseek_v3, yarn of unequal scales": Case(
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        DENSE
        | _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.7),
    ),
    "deepseek_v2": Case("DeepseekV2Config", "DeepseekV2ForCausalLM", DENSE | {"q_lora_rank": None}),
    "recurrent_gemma": Case(
        "RecurrentGemmaConfig",
        "RecurrentGemmaForCausalLM",
        GRIFFIN | {"num_key_value_heads": 1},
        inputs=TEXT_RIGHT,
    ),
    "recurrent_gemma, kinds": Case(
        "RecurrentGemmaConfig",
        "RecurrentGemmaForCausalLM",
        GRIFFIN
        | {"lru_width": 48, "conv1d_width": 3, "attention_bias": True, "logits_soft_cap": 5.0}
        | {"block_types": ["attention", "recurrent"], "num_key_value_heads": 2},
        inputs=TEXT_RIGHT,
    ),
    "mamba2": Case("Mamba2Config", "Mamba2ForCausalLM", MAMBA2 | {"n_groups": 2, "state_size": 12}),
    "mamba2, tied": Case(
        "Mamba2Config",
        "Mamba2ForCausalLM",
        MAMBA2
        | {"n_groups": 1, "state_size": 12, "conv_kernel": 3, "use_conv_bias": False}
        | {"time_step_limit": (0.05, 1.0), "tie_word_embeddings": True},
    ),
    "mamba2, biases": Case(
        "Mamba2Config",
        "Mamba2ForCausalLM",
        MAMBA2 | {"n_groups": 4, "state_size": 12, "use_bias": True},
        # With biases, what padding projects to runs into the convolution of the first real tokens.
        inputs=TEXT_RIGHT,
    ),
    "bamba": Case("BambaConfig", "BambaForCausalLM", BAMBA | {"attn_layer_indices": [1]}, gain=2),
    "bamba, biases": Case(
        "BambaConfig",
        "BambaForCausalLM",
        BAMBA
        | {"attn_layer_indices": [2, 0], "mamba_d_head": 8, "mamba_d_conv": 3, "mamba_proj_bias": True}
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "time_step_limit": (0.05, 1.0)}
        | _rope(rope_type="linear", factor=2.0),
        inputs=TEXT_RIGHT,
        gain=2,
    ),
    **_experts(),
    "youtu": Case("YoutuConfig", "YoutuForCausalLM", DENSE | {"rms_norm_eps": 1e-2, "initializer_range": 0.02}),
    **_xlnet(),
}
