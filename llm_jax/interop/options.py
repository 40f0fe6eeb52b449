"""The type and range of each option of a config.json. Every option that is read is checked against this table."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

LARGEST = 2**31 - 1
"""Largest whole number: positions are int32. Published sizes are far smaller."""
DEEPEST = 1024
"""Largest number of layers. The limit bounds the Python objects that are built before any weight is read. The deepest
published transformer has 1,000 layers (Wang et al. 2022, arXiv:2203.00555)."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A set of permitted values."""

    rule: str
    """Description of the set, which completes 'it must be ...'."""
    holds: Callable[[Any], bool]


def _whole(low: int, high: int = LARGEST) -> Kind:
    rule = f"a whole number from {low} to {high}"
    return Kind(rule, lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)


def _real(value: Any) -> bool:
    # math.isfinite raises for integers with hundreds of digits. NaN fails both comparisons.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e38 <= value <= 1e38


def _list(rule: str, holds: Callable[[Any], bool]) -> Kind:
    return Kind(f"a list of {rule}", lambda value: isinstance(value, list | tuple) and all(map(holds, value)))


def _limit(value: Any) -> bool:
    """A number or an infinity. transformers writes infinity, which JSON lacks, as {"__float__": "Infinity"}."""
    stated = value.get("__float__") if isinstance(value, dict) else value
    return stated in ("Infinity", "-Infinity") or _real(stated) or (isinstance(stated, float) and math.isinf(stated))


def _group(value: Any) -> bool:
    """[list of strings, number of repeats]."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not _WORDS.holds(value[0]):
        return False
    return _DEPTH.holds(value[1]) and len(value[0]) * value[1] <= DEEPEST


_SIZE, _COUNT, _DEPTH = _whole(1), _whole(0), _whole(1, DEEPEST)
_RATIO = Kind("a number greater than 0, from 1e-30 to 1e30", lambda value: _real(value) and 1e-30 <= value <= 1e30)
_EPSILON = Kind("a number greater than 0, up to 1", lambda value: _real(value) and 0 < value <= 1)
_WEIGHT = Kind("a number of at least 0, up to 1e38", lambda value: _real(value) and value >= 0)
_SHARE = Kind("a number between 0 and 1", lambda value: _real(value) and 0 <= value <= 1)
_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_WORD = Kind("a string", lambda value: isinstance(value, str))
_OBJECT = Kind("an object of options", lambda value: isinstance(value, dict))
_WORDS = _list("strings", lambda value: isinstance(value, str))
_RATIOS = _list("numbers greater than 0", _RATIO.holds)
_LAYERS = _list("numbers of layers", _whole(0, DEEPEST).holds)

_NAMES: dict[Kind, str] = {
    _DEPTH: """
        decoder_layers encoder_layers inner_group_num n_layer n_layers num_decoder_layers num_hidden_groups
        num_hidden_layers num_layers""",
    _SIZE: """
        attention_window_size chunk_size conv1d_width conv_kernel d_ff d_inner d_kv d_model decoder_attention_heads
        decoder_ffn_dim decoder_sparse_step decoder_vocab_size dim embedding_size encoder_attention_heads
        encoder_ffn_dim expert_capacity experts_per_token ffn_dim ffn_hidden_size global_attn_every_n_layers head_dim
        hidden_dim hidden_size intermediate_size kv_lora_rank kv_n_heads lru_width mamba_chunk_size mamba_d_conv
        mamba_d_state mamba_n_groups mamba_n_heads max_position_embeddings max_seq_len moe_intermediate_size
        moe_layer_freq moe_num_experts moe_top_k n_ctx n_embd n_embed n_group n_groups n_head n_heads n_inner
        n_positions n_routed_experts n_shared_experts no_rope_layer_interval num_attention_heads num_experts
        num_experts_per_tok num_heads num_key_value_heads num_kv_heads num_labels num_ln_in_parallel_attn
        num_local_experts original_max_position_embeddings pretraining_tp q_lora_rank qk_nope_head_dim
        qk_rope_head_dim relative_attention_max_distance relative_attention_num_buckets rotary_dim seq_length
        shared_expert_intermediate_size sliding_window sliding_window_pattern state_size topk_group type_vocab_size
        v_head_dim vocab_size window_size word_embed_proj_dim""",
    _COUNT: """
        alibi_bias_max first_k_dense_replace local_attention max_window_layers num_sparse_decoder_layers
        num_sparse_encoder_layers pad_token_id""",
    _whole(-LARGEST): "clamp_len",
    _RATIO: """
        attention_factor attention_multiplier attn_logit_softcapping beta_fast beta_slow clip_qkv embedding_multiplier
        expand expansion_ratio factor final_logit_softcapping global_rope_theta high_freq_factor
        initializer_cutoff_factor local_rope_theta logit_scale logits_scaling logits_soft_cap low_freq_factor
        mamba_expand moe_normalize_expert_weights query_pre_attn_scalar residual_multiplier rope_local_base_freq
        rope_theta rotary_emb_base routed_scaling_factor softmax_scale swiglu_alpha swiglu_limit""",
    _EPSILON: "layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon rms_norm_eps",
    _WEIGHT: """
        initializer_factor initializer_range init_std moe_loss_weight mscale mscale_all_dim router_aux_loss_coef
        router_z_loss_coef""",
    _SHARE: """
        activation_dropout attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout
        classifier_dropout_prob decoder_layerdrop dropout dropout_rate embd_pdrop embedding_dropout emb_pdrop
        encoder_layerdrop ffn_dropout hidden_dropout hidden_dropout_prob layerdrop partial_rotary_factor
        residual_dropout resid_pdrop rotary_pct router_jitter_noise summary_first_dropout summary_last_dropout""",
    _FLAG: """
        _remove_final_layer_norm add_cross_attention add_final_layer_norm alibi
        apply_residual_connection_post_layernorm attention_bias bi_data bias classifier_bias decoder_bias
        do_layer_norm_before enable_bias is_decoder layer_norm_elementwise_affine mamba_conv_bias mamba_proj_bias
        mlp_bias multi_query new_decoder_architecture no_bias norm_bias norm_topk_prob normalize_before
        normalize_embedding parallel_attn prefix_lm qk_layernorm qk_ln qkv_bias rope_interleave router_bias
        scale_attn_by_inverse_layer_idx scale_attn_weights scale_decoder_outputs scale_embedding
        share_encoder_decoder_embeddings slow_but_exact summary_use_proj tie_word_embeddings truncate untie_r use_bias
        use_bidirectional_attention use_conv_bias use_parallel_residual use_qk_norm use_qkv_bias use_sliding_window""",
    _WORD: """
        activation activation_function attn_type classifier_activation classifier_pooling dense_act_fn
        feed_forward_proj ff_activation hidden_act hidden_activation model_type position_embedding_type rope_type
        router_dtype scoring_func summary_activation summary_type topk_method type""",
    _OBJECT: """
        attn_config ffn_act_fn ffn_config full_attention id2label rope_parameters rope_scaling sliding_attention""",
    _WORDS: "_block_types architectures block_types layer_types",
    _LAYERS: "attn_layer_indices mlp_only_layers",
    Kind("a whole number from 1, or 'auto'", lambda value: value == "auto" or _SIZE.holds(value)): "mamba_d_head",
    _list("[kinds of layers, how often]", _group): "attention_types",
    _list("0 and 1", lambda value: value in (0, 1) and isinstance(value, int)): "no_rope_layers",
    _RATIOS: "long_factor short_factor",
    _list("two numbers", _limit): "time_step_limit",
}
KINDS: dict[str, Kind] = {name: kind for kind, names in _NAMES.items() for name in names.split()}
"""{option: its permitted values, besides null}. An option has the same meaning in every family."""
