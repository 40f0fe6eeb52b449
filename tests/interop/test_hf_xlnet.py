"""XLNet's config.json and tensors."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from llm_jax.core import trees
from llm_jax.interop import forward, load_hf, save_hf
from llm_jax.models.architecture import architecture
from llm_jax.models.families.encoder import span_head
from llm_jax.models.families.llama import llama
from llm_jax.models.families.xlnet import last_head, xlnet
from llm_jax.models.heads import ClassHead
from llm_jax.models.stack import Execution
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny

CONFIG = dataclasses.replace(xlnet(2, 4, 16, vocab_size=tiny.VOCAB, hidden=24), execution=Execution(unroll=1))
HEADS = {"scores": CONFIG.head, "sequence": last_head(3), "token": ClassHead(5), "span": span_head()}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("farthest", [None, 5])
def test_there_and_back_to_the_bit(head, farthest, tmp_path):
    config = dataclasses.replace(xlnet(2, 4, 16, vocab_size=tiny.VOCAB, hidden=24, farthest=farthest), head=head)
    model = Transformer(config)
    params = tiny.parameters(model)
    save_hf(model, params, tmp_path)
    again, loaded = load_hf(tmp_path)
    assert architecture(again.config) == architecture(config)
    for (path, leaf), (_, other) in zip(trees.named_leaves(params), trees.named_leaves(loaded), strict=True):
        np.testing.assert_array_equal(leaf, other, err_msg=path)
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(array.size for array in stored.values()) == trees.count(params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_type": "uni"}, "attn_type = 'uni': only 'bi' is supported"),
        ({"bi_data": True}, "bi_data = True"),
        ({"untie_r": False}, "untie_r = False"),
        ({"architectures": ["XLNetForQuestionAnswering"]}, "supported are .* did you mean 'XLNetForQuestionAnswering"),
        ({"architectures": ["XLNetLMHeadModel", "XLNetModel"]}, "architectures = .*: state one class"),
        ({"architectures": []}, r"architectures = \[\]: state one class"),
        ({"architectures": ["XLNetForSequenceClassification"], "summary_type": "mean"}, "summary_type = 'mean'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(options, message, tmp_path):
    model = Transformer(CONFIG)
    save_hf(model, tiny.parameters(model), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    with pytest.raises(ValueError, match=message):
        load_hf(tmp_path)


def test_a_number_of_labels_without_their_names_is_enough(tmp_path):
    model = Transformer(dataclasses.replace(CONFIG, head=ClassHead(5)))
    save_hf(model, tiny.parameters(model), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"id2label": None, "num_labels": 5}))
    assert load_hf(tmp_path)[0].config.head.classes == 5


def test_options_of_memory_change_nothing(tmp_path):
    model = Transformer(CONFIG)
    save_hf(model, tiny.parameters(model), tmp_path)
    file = tmp_path / "config.json"
    memory = {"mem_len": 512, "reuse_len": 256, "use_mems_eval": True, "same_length": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | memory))
    assert architecture(load_hf(tmp_path)[0].config) == architecture(CONFIG)


def test_only_models_with_targets_take_an_order():
    model = Transformer(llama(1, 2, 8, hidden=8, vocab_size=11, max_length=8))
    mask = np.zeros((1, 3, 3))
    with pytest.raises(ValueError, match="forward has unknown inputs perm_mask"):
        forward(model, tiny.parameters(model), input_ids=np.ones((1, 3)), perm_mask=mask)
