"""Small random models of transformers with options that change what is computed, or that its classes do not read."""

import numpy as np

from tests.parity.inputs import MASK, ONE_TYPE, PADDED_LEFT, PAIR, SENTENCES, TEXT
from tests.parity.torch_models import BAMBA, BART, ENCODER, MODERN, NEAR, NO_DROPOUT, OLD, SWITCH, T5, XLNET, Case

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
GPT2, LENGTH = OLD | NO_DROPOUT | {"n_layer": 2}, {"max_position_embeddings": 64}
NARROW = ENCODER | UNTIED | {"embedding_size": 20, "num_hidden_layers": 2}

HOLES = TEXT | {"attention_mask": np.where(np.arange(MASK.shape[1]) % 5 == 3, 0, MASK)}
"""Rows with padding between tokens too."""

OPTION_CASES = {
    "gpt2, untied and scaled by layer": Case(
        "GPT2Config",
        "GPT2LMHeadModel",
        GPT2 | UNTIED | {"scale_attn_by_inverse_layer_idx": True, "activation_function": "quick_gelu"},
    ),
    "gpt2, unscaled": Case("GPT2Config", "GPT2LMHeadModel", GPT2 | {"scale_attn_weights": False}, gain=2),
    "gptj, tied": Case("GPTJConfig", "GPTJForCausalLM", GPT2 | TIED | {"rotary_dim": 4}),
    "opt, untied and narrow": Case(
        "OPTConfig", "OPTForCausalLM", SMALL | LENGTH | UNTIED | {"ffn_dim": 48, "word_embed_proj_dim": 20}
    ),
    "llama, other options": Case(
        "LlamaConfig",
        "LlamaForCausalLM",
        SMALL | LENGTH | {"intermediate_size": 48, "partial_rotary_factor": 0.5, "hidden_act": "gelu"},
    ),
    "gpt_neox, an odd number of rotary features": Case(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", SMALL | LENGTH | {"intermediate_size": 48, "rotary_pct": 0.4}
    ),
    "mpt, what its class does not read, and holes": Case(
        "MptConfig",
        "MptForCausalLM",
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 97, "expansion_ratio": 2, "logit_scale": 0.5}
        | {"no_bias": False, "attn_config": {"alibi": False, "clip_qkv": 0.7}},
        inputs=HOLES,
    ),
    "bamba, other options": Case(
        "BambaConfig",
        "BambaForCausalLM",
        BAMBA
        | {"attn_layer_indices": [0], "mamba_conv_bias": False, "mamba_expand": 3, "num_key_value_heads": None}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.25}},
        gain=2,
    ),
    "bert, untied": Case("BertConfig", "BertForMaskedLM", ENCODER | UNTIED, inputs=SENTENCES),
    "mpnet, untied": Case("MPNetConfig", "MPNetForMaskedLM", ENCODER | UNTIED, inputs=ONE_TYPE),
    "electra, untied": Case("ElectraConfig", "ElectraForMaskedLM", NARROW, inputs=SENTENCES),
    "albert, untied": Case("AlbertConfig", "AlbertForMaskedLM", NARROW, inputs=SENTENCES),
    "modernbert, untied and without a bias of scores": Case(
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        MODERN | UNTIED | {"decoder_bias": False, "local_attention": 2},
        inputs=ONE_TYPE,
    ),
    "xlnet, untied": Case("XLNetConfig", "XLNetLMHeadModel", XLNET | UNTIED | {"n_layer": 2}, inputs=PADDED_LEFT),
    "bart, stacks of other sizes": Case(
        "BartConfig",
        "BartForConditionalGeneration",
        BART | {"decoder_attention_heads": 2, "decoder_ffn_dim": 40, "decoder_layers": 1},
        inputs=PAIR,
    ),
    "t5, 1.1 without a head": Case(
        "T5Config",
        "T5ForConditionalGeneration",
        T5 | NEAR | UNTIED | {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 1},
        inputs=PAIR,
        gain=2,
    ),
    "umt5, tied": Case("UMT5Config", "UMT5ForConditionalGeneration", T5 | NEAR, inputs=PAIR, gain=2),
    "switch, another activation": Case(
        "SwitchTransformersConfig",
        "SwitchTransformersForConditionalGeneration",
        SWITCH
        | {"num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
        | {"dense_act_fn": "silu", "feed_forward_proj": "gated-gelu"},
        inputs=PAIR,
        gain=2,
    ),
}
"""Compared live only: the fixtures of CASES show every tensor that these have."""
