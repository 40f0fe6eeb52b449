"""Every published family: its tensors make up the model, its config.json says all of it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm_jax.core import trees
from llm_jax.interop import forward, load_hf, save_hf
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.model_inputs import model_inputs
from llm_jax.models.architecture import architecture
from llm_jax.models.build import build
from llm_jax.models.families import SIZES
from llm_jax.models.families.bert import bert
from llm_jax.models.families.llama import llama
from llm_jax.models.heads import HeadConfig, ScaledHead
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny
from tests.helpers.published import EVERY, PUBLISHED

# Never published: dense and banded layers in turn; the weights of PaLM, LaMDA, GLaM, GShard and RetNet, and of the 2017
# Transformer, whose heirs all have a bias on their scores. transformers has no LSTM.
UNPUBLISHED = ("gpt3", "lamda", "glam", "gshard", "lstm", "retnet", "original")
"""Families that no config.json can say. PaLM has no weights either, but its models are of Cohere's form."""
EXPORTED = {name: config for name, config in EVERY.items() if name not in UNPUBLISHED}
SMALL = PUBLISHED["llama"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small LLaMA in transformers' format."""
    model = Transformer(SMALL)
    save_hf(model, tiny.parameters(model), tmp_path / "saved")
    return tmp_path / "saved"


def _change(folder: Path, **options) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


@pytest.mark.parametrize("name", EXPORTED)
def test_there_and_back_to_the_bit(name: str, tmp_path: Path):
    model = build(EXPORTED[name])
    params = tiny.parameters(model)
    save_hf(model, params, tmp_path)
    again, loaded = load_hf(tmp_path)
    assert architecture(again.config) == architecture(model.config)
    expected, actual = dict(trees.named_leaves(params)), dict(trees.named_leaves(loaded))
    assert expected.keys() == actual.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(leaf, actual[path], err_msg=path)
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(array.size for array in stored.values()) == trees.count(params)


@pytest.mark.parametrize("name", UNPUBLISHED)
def test_what_no_config_json_can_say_is_refused(name: str, tmp_path: Path):
    model = build(EVERY[name])
    with pytest.raises(ValueError, match="none of gpt2, .* can express this model"):
        save_hf(model, tiny.parameters(model), tmp_path)
    with pytest.raises(ValueError, match="a gpt2 config.json cannot express this model"):
        save_hf(model, tiny.parameters(model), tmp_path, family="gpt2")
    assert not list(tmp_path.iterdir())


def test_a_family_may_be_asked_for(tmp_path: Path):
    model = Transformer(SMALL)
    params = tiny.parameters(model)
    for family in ("llama", "mistral", "phi3"):
        save_hf(model, params, tmp_path / family, family=family)
        assert json.loads((tmp_path / family / "config.json").read_text())["model_type"] == family
        assert architecture(load_hf(tmp_path / family)[0].config) == architecture(SMALL)
    assert set(load_file(tmp_path / "llama" / "model.safetensors")) != set(
        load_file(tmp_path / "phi3/model.safetensors")
    )


def test_shards_hold_the_same(saved: Path, tmp_path: Path):
    model, params = load_hf(saved)
    save_hf(model, params, tmp_path / "shards", shard_bytes=4000)
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    _, again = load_hf(tmp_path / "shards")
    for (path, leaf), (_, other) in zip(trees.named_leaves(params), trees.named_leaves(again), strict=True):
        np.testing.assert_array_equal(leaf, other, err_msg=path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files(saved: Path, tmp_path: Path, dtype: str):
    model, params = load_hf(saved)
    save_hf(model, params, tmp_path / "half", dtype=dtype)
    assert {str(array.dtype) for array in load_file(tmp_path / "half" / "model.safetensors").values()} == {dtype}
    for target in ("float32", "bfloat16"):
        half, loaded = load_hf(tmp_path / "half", dtype=target)
        assert half.precision.param_dtype == jnp.dtype(target)
        for (path, leaf), (_, other) in zip(trees.named_leaves(params), trees.named_leaves(loaded), strict=True):
            assert other.dtype == jnp.dtype(target)
            np.testing.assert_allclose(np.asarray(other, np.float32), leaf, rtol=2**-7, atol=1e-6, err_msg=path)


def test_a_checkpoint_of_the_bare_model(saved: Path):
    file = saved / "model.safetensors"
    _, params = load_hf(saved)
    tensors = {name.removeprefix("model."): array for name, array in load_file(file).items()}
    save_file(tensors, file)
    _, bare = load_hf(saved)
    np.testing.assert_array_equal(bare["head"]["kernel"], params["head"]["kernel"])
    tensors.pop("lm_head.weight")
    save_file(tensors, file)
    _change(saved, tie_word_embeddings=True)
    tied, loaded = load_hf(saved)
    np.testing.assert_array_equal(loaded["embed"]["table"], params["embed"]["table"])


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_a_checkpoint_of_the_bare_pair_has_no_bias_of_scores(name: str, tmp_path: Path):
    model = build(EVERY[name])
    save_hf(model, tiny.parameters(model), tmp_path)
    file = tmp_path / "model.safetensors"
    _, params = load_hf(tmp_path)
    tensors = {key.removeprefix("model."): array for key, array in load_file(file).items()}
    tensors.pop("final_logits_bias")
    save_file(tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]}, file)
    _, bare = load_hf(tmp_path)
    np.testing.assert_array_equal(bare["decoder"]["embed"]["table"], params["decoder"]["embed"]["table"])
    assert bare["decoder"]["head"]["bias"].shape == (tiny.VOCAB,) and not bare["decoder"]["head"]["bias"].any()


def test_a_copy_of_a_tied_weight_must_be_one(saved: Path):
    file = saved / "model.safetensors"
    _change(saved, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="lm_head.weight and model.embed_tokens.weight differ"):
        load_hf(saved)
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, file)
    load_hf(saved)


def _without(name):
    return lambda tensors: {key: array for key, array in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("model.norm.weight"), "lacks model.norm.weight, which config.json requires"),
        (lambda tensors: tensors | {"extra": np.zeros(1)}, "has extra, which the model of config.json does not have"),
        (
            lambda tensors: tensors | {"model.norm.weight": np.zeros(3, np.float32)},
            r"model.norm.weight has shape \[3\] and config.json requires \[16\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved: Path, change, message: str):
    file = saved / "model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(ValueError, match=message):
        load_hf(saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "lama"}, "model_type 'lama': supported are gpt2, .*; did you mean 'llama'?"),
        ({"model_type": None}, "model_type None: supported are"),
        ({"hidden_act": "xielu"}, "hidden_act = 'xielu': supported are gelu, "),
        (
            {"partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rotates 2 of 4 features: this family rotates all",
        ),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope type 'spiral': supported are default, linear"),
        ({"rope_parameters": {"rope_type": "linear"}}, "has no rope_parameters.factor: the option is required"),
        ({"vocab_size": None}, "has no vocab_size: the option is required"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
    ],
)
def test_configs_that_are_not_supported_are_refused_by_name(saved: Path, options: dict, message: str):
    _change(saved, **options)
    with pytest.raises(ValueError, match=message):
        load_hf(saved)


OF_OTHERS = [
    ("bert", {"architectures": ["BertForMaskedLm"]}, "'BertForMaskedLm'.: supported are .*; did you mean 'BertForMask"),
    ("bert", {"architectures": ["BertModel"]}, r"architectures = \['BertModel'\]: supported are BertForMaskedLM, "),
    ("bert", {"architectures": []}, r"architectures = \[\]: state one class"),
    ("bert", {"architectures": ["BertForMaskedLM", "BertModel"]}, "architectures = .*: state one class"),
    ("bert", {"is_decoder": True}, "is_decoder = True: only False is supported"),
    ("bert", {"add_cross_attention": True}, "add_cross_attention = True: only False"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key': only 'absolute'"),
    ("bert", {"tie_word_embeddings": False}, "lacks cls.predictions.decoder.bias, cls.predictions.decoder.weight, "),
    ("bert", {"hidden_act": "mish"}, "hidden_act = 'mish': supported are gelu, "),
    ("bert, tokens", {"id2label": {"0": "a"}}, r"classifier.weight has shape \[5, 16\] and config.json requires \[1"),
    ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets = 16: only 32 is supported"),
    ("modernbert", {"rope_scaling": {"type": "linear"}}, "rope_scaling = .*: only None is supported"),
    ("modernbert", {"layer_types": ["full_attention"]}, "has 1 layer_types and 3 layers"),
    ("modernbert", {"architectures": ["ModernBertForMultipleChoice"]}, "supported are ModernBertForMaskedLM, "),
    ("modernbert, tokens", {"classifier_activation": "mish"}, "classifier_activation = 'mish': supported are gelu, "),
    (
        "modernbert, tokens",
        {"architectures": ["ModernBertForSequenceClassification"], "classifier_pooling": "mean"},
        "classifier_pooling = 'mean': only 'cls' is supported",
    ),
    ("bamba", {"attn_layer_indices": [2]}, "attention is .2,. and there are 2 layers"),
    ("bamba", {"attn_layer_indices": [-1]}, r"attn_layer_indices = \[-1\]: it must be a list of numbers of layers"),
    ("bamba", {"hidden_act": "gelu"}, "hidden_act = 'gelu': only 'silu' is supported"),
    ("bamba", {"head_dim": 8}, "head_dim = 8: only 4 is supported"),
    ("bamba", {"mamba_d_head": "all"}, "mamba_d_head = 'all': it must be a whole number from 1, or 'auto'"),
    ("bamba", {"mamba_d_head": 4}, "mamba_expand 2 of hidden_size 16 and mamba_n_heads 4 of mamba_d_head 4"),
    ("albert", {"num_hidden_groups": 3}, "groups is 3 and layers is 4"),
    (
        "t5",
        {"feed_forward_proj": "gated-glu-relu"},
        "feed_forward_proj = 'gated-glu-relu': supported .* prefix 'gated-'",
    ),
    ("t5", {"feed_forward_proj": "swig"}, "feed_forward_proj = 'swig': supported are gelu, "),
    ("t5", {"feed_forward_proj": "gated-gelu"}, "lacks .*wi_0.weight"),
    ("t5", {"d_model": None}, "has no d_model: the option is required"),
    ("bart", {"decoder_attention_heads": 3}, "decoder_attention_heads is 3 and d_model is 16"),
    ("bart", {"decoder_ffn_dim": 8}, r"fc1.weight has shape \[24, 16\] and config.json requires \[8, 16\]"),
    ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact = True: only False is supported"),
    ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings = False: only True"),
    ("bart", {"normalize_before": True}, "normalize_before = True: only False"),
    ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings = False: only True"),
    ("marian", {"decoder_vocab_size": 9}, "decoder_vocab_size = 9: only 32 is supported"),
]


def test_a_umt5_that_says_its_weights_are_not_tied_scores_hidden_states_as_they_are(tmp_path: Path):
    """So published files are: transformers 5 scales what their matrix reads, and version 4 did not."""
    model = build(EVERY["umt5"])
    save_hf(model, tiny.parameters(model), tmp_path)
    file = tmp_path / "config.json"
    options = json.loads(file.read_text())
    assert not options.pop("scale_decoder_outputs") and not options["tie_word_embeddings"]
    file.write_text(json.dumps(options))
    assert type(load_hf(tmp_path)[0].config.decoder.head) is HeadConfig
    _change(tmp_path, tie_word_embeddings=True)
    head = load_hf(tmp_path)[0].config.decoder.head
    assert isinstance(head, ScaledHead) and head.scale == 16**-0.5


def test_a_number_of_labels_without_their_names_is_enough(tmp_path: Path):
    model = build(EVERY["bert, rows"])
    save_hf(model, tiny.parameters(model), tmp_path)
    _change(tmp_path, id2label=None, num_labels=3)
    assert load_hf(tmp_path)[0].config.head.classes == 3


def test_forward_names_inputs_that_are_missing_or_unknown():
    tokens = {"input_ids": tiny.tokens(1, 4)}
    with pytest.raises(ValueError, match="forward has no decoder_input_ids: the model requires it"):
        forward(build(EVERY["t5"]), None, **tokens)
    with pytest.raises(ValueError, match="forward has no input_ids"):
        forward(build(EVERY["bert"]), None)
    with pytest.raises(
        ValueError, match="forward has unknown inputs decoder_input_ids: supported are attention_mask, input_ids"
    ):
        forward(build(EVERY["bert"]), None, **tokens, decoder_input_ids=tiny.tokens(1, 4))


IDS = np.array([[1, 2, 3]])


@pytest.mark.parametrize(
    ("family", "inputs", "message"),
    [
        ("llama", {"input_ids": IDS + 1000}, "input_ids holds .1001.: values of the model's vocabulary .* from 0 to"),
        ("llama", {"input_ids": -IDS}, "input_ids holds .-1."),
        ("llama", {"input_ids": IDS * 2**40}, "input_ids holds"),
        ("llama", {"input_ids": IDS + 0.5}, "input_ids holds .1.5."),
        ("llama", {"input_ids": IDS[0]}, "input_ids has shape .3,."),
        ("llama", {"input_ids": IDS, "attention_mask": IDS}, "attention_mask holds .2.*a mask .* from 0 to 1"),
        ("llama", {"input_ids": IDS, "position_ids": IDS - 2}, "position_ids holds .-1."),
        ("gpt2", {"input_ids": IDS, "position_ids": IDS + 1000}, "position_ids holds .1001.*the model's positions"),
        ("bert", {"input_ids": IDS, "token_type_ids": IDS}, "token_type_ids holds .2.*the model's token types"),
        ("gpt2", {"input_ids": IDS, "token_type_ids": 0 * IDS}, "the model has no token types"),
        ("t5", {"input_ids": IDS, "decoder_input_ids": IDS + 1000}, "decoder_input_ids holds .1001."),
        ("t5", {"input_ids": IDS + 1000, "decoder_input_ids": IDS}, "input_ids holds .1001."),
    ],
)
def test_forward_refuses_what_no_table_has(family, inputs, message):
    """jax takes the last row for an index beyond the table, and the last but one for -2."""
    with pytest.raises(ValueError, match=message):
        model_inputs(build(EVERY[family]), **inputs)


def test_every_activation_can_be_exported(tmp_path: Path):
    config = bert(1, 2, 8, vocab_size=11, max_length=8, activation="tanh")
    model = build(config)
    save_hf(model, tiny.parameters(model), tmp_path)
    assert architecture(load_hf(tmp_path)[0].config) == architecture(config)


def test_folders_that_cannot_be_read(saved: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="has no config.json"):
        load_hf(tmp_path)
    file = saved / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="model.safetensors cannot be read"):
        load_hf(saved)
    file.unlink()
    with pytest.raises(ValueError, match="has no .safetensors file"):
        load_hf(saved)
    (saved / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ValueError, match="pytorch_model.bin only: unpickling can execute code"):
        load_hf(saved)
    (saved / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(ValueError, match="lacks model-00001-of-00002.safetensors"):
        load_hf(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_hf(saved)


def test_values_that_a_type_cannot_hold_are_refused_and_nothing_is_left(saved: Path, tmp_path: Path):
    model, params = load_hf(saved)
    params["final_norm"]["scale"] = params["final_norm"]["scale"] * 1e6
    with pytest.raises(ValueError, match="model.norm.weight has values too large for float16"):
        save_hf(model, params, tmp_path / "half", dtype="float16", shard_bytes=4000)
    assert not list((tmp_path / "half").iterdir())
    save_hf(model, params, tmp_path / "half", dtype="bfloat16")


def test_tensors_of_integers_are_refused(saved: Path):
    file = saved / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = np.ones(16, np.int8)
    save_file(tensors, file)
    with pytest.raises(ValueError, match="model.norm.weight has type I8: only F64, F32"):
        load_hf(saved)


def test_weights_are_not_written_over(saved: Path):
    model, params = load_hf(saved)
    with pytest.raises(ValueError, match="already holds config.json, model.safetensors: choose an empty folder"):
        save_hf(model, params, saved)


def test_a_type_that_files_do_not_have_is_refused(saved: Path, tmp_path: Path):
    model, params = load_hf(saved)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        save_hf(model, params, tmp_path / "other", dtype="int8")
    with pytest.raises(ValueError, match="params"):
        load_hf(saved, dtype="float16")


# Where no layer has experts, they say what deepseek_v3 says.
TWINS = {"deepseek_v2", "youtu"}
# They say nothing that an earlier family does not say.
ALIASES = {"xlm-roberta", "camembert", "mt5", "ernie4_5", "codegen"}


def test_every_family_is_exported_by_some_model():
    found = {name: next(f.model_type for f in FAMILIES.values() if f.expresses(c)) for name, c in EXPORTED.items()}
    assert set(found.values()) == set(FAMILIES) - {"youtu"} - ALIASES


@pytest.mark.parametrize("family", ["deepseek_v3", *sorted(TWINS)])
def test_dense_layers_of_deepseek_under_each_of_their_names(family: str, tmp_path: Path):
    model = Transformer(PUBLISHED["deepseek, yarn"])
    params = tiny.parameters(model)
    save_hf(model, params, tmp_path / "saved", family=family)
    again, loaded = load_hf(tmp_path / "saved")
    assert architecture(again.config) == architecture(model.config)
    for (path, leaf), (_, other) in zip(trees.named_leaves(params), trees.named_leaves(loaded), strict=True):
        np.testing.assert_array_equal(leaf, other, err_msg=path)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("deepseek_v3", {"first_k_dense_replace": 1}, "lacks model.layers.1.mlp.gate.weight, .* and more, "),
        ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq = 2: only 1"),
        ("deepseek_v2", {"first_k_dense_replace": 1}, "has no num_experts_per_tok: the option is required"),
        ("deepseek_v2", {"mlp_bias": True}, "mlp_bias = True: only False"),
        ("youtu", {"rope_interleave": False}, "rope_interleave = False: only True"),
        ("youtu", {"attention_bias": True}, "attention_bias = True: only False"),
        ("youtu", {"num_key_value_heads": 2}, "num_key_value_heads = 2: only 4"),
        (
            "youtu",
            {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}},
            "sharpening requires YaRNScaling",
        ),
    ],
)
def test_options_of_deepseek_that_are_not_supported_are_refused_by_name(
    family: str, options: dict, message: str, tmp_path: Path
):
    model = Transformer(PUBLISHED["deepseek"])
    save_hf(model, tiny.parameters(model), tmp_path / "saved", family=family)
    load_hf(tmp_path / "saved")
    _change(tmp_path / "saved", **options)
    with pytest.raises(ValueError, match=message):
        load_hf(tmp_path / "saved")


OF_EXPERTS = [
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method = 'noaux_tc': supported are greedy and group_limited"),
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob = True: only False"),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func = 'sigmoid': only 'softmax'"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func = 'softmax': only 'sigmoid'"),
    ("deepseek_v3", {"n_group": 3}, "limit.groups is 3 and count is 8"),
    ("mixtral", {"num_local_experts": 4}, r"gate.weight has shape \[3, 16\] and config.json requires \[4, 16\]"),
    ("mixtral", {"num_experts_per_tok": 4}, "router.top is 4 and there are 3 experts"),
    ("qwen2_moe", {"qkv_bias": False}, "qkv_bias = False: only True"),
    ("qwen3_moe", {"hidden_act": "sine"}, "hidden_act = 'sine': supported are gelu, "),
    ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit = 5.0: only 7.0"),
    ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, "quantized weights are not supported"),
    ("dbrx", {"ffn_config": {"moe_normalize_expert_weights": 2}}, "moe_normalize_expert_weights = 2: only 1"),
    ("dbrx", {"tie_word_embeddings": True}, "tie_word_embeddings = True: only False"),
    ("switch", {"dense_act_fn": "gated-gelu"}, "dense_act_fn = 'gated-gelu': supported are gelu, "),
    ("switch", {"router_dtype": "bfloat16"}, "router_dtype = 'bfloat16': only 'float32'"),
]


@pytest.mark.parametrize(("name", "options", "message"), OF_OTHERS + OF_EXPERTS, ids=lambda value: str(value)[:40])
def test_other_configs_that_are_not_supported_are_refused_by_name(name, options, message, tmp_path):
    model = build(EVERY[name])
    save_hf(model, tiny.parameters(model), tmp_path)
    _change(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        load_hf(tmp_path)


def test_a_layer_that_predicts_a_second_token_is_left_out(tmp_path: Path):
    model = build(EVERY["deepseek_v3"])
    params = tiny.parameters(model)
    save_hf(model, params, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"model.layers.61.enorm.weight": np.ones(16, np.float32)}, file)
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path)[1], params)


@pytest.mark.parametrize("name", SIZES)
def test_every_published_size_is_of_its_family(name: str):
    kinds = {kind for kind, family in FAMILIES.items() if family.expresses(SIZES[name]())}
    assert bool(kinds) != name.startswith((*UNPUBLISHED, "transformer-"))


def test_a_deep_model_keeps_its_layers_in_order(tmp_path: Path):
    model = Transformer(llama(3, heads=2, width=8, hidden=8, vocab_size=11, max_length=8))
    params = tiny.parameters(model)
    save_hf(model, params, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        ours = params["stack"]["segment_0"]["block_0"]["ffn"]["up"]["kernel"][layer]
        np.testing.assert_array_equal(stored[f"model.layers.{layer}.mlp.up_proj.weight"], np.asarray(ours).T)
