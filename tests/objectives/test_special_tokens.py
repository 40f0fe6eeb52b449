"""Tokens of objectives are those of the tokenizer by their names, and the last ids of the model's vocabulary."""

import numpy as np
import pytest

from llm_jax.models.families.bert import bert
from llm_jax.models.families.t5 import t5
from llm_jax.objectives import MaskedLMConfig, SpanCorruptionConfig, special_tokens
from llm_jax.tokenizers import HuggingFaceTokenizerConfig, TrainSentencePieceConfig

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A word-level tokenizer with BERT's special tokens, one sentinel, and a word that looks like one."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "<extra_id_1>"]
    vocabulary = {name: index for index, name in enumerate([*names, "red", "<extra_id_0>"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.add_special_tokens(names)
    path = tmp_path_factory.mktemp("imported") / "tokenizer.json"
    model.save(str(path))
    config = HuggingFaceTokenizerConfig(str(path), bos="[CLS]", eos="[SEP]", pad="[PAD]")
    return config.build(lambda: (), path.parent, "")


def test_a_token_is_that_of_the_tokenizer_under_any_of_its_names(imported):
    assert special_tokens.ids((special_tokens.MASK, special_tokens.SEPARATOR), imported, 8) == {"<mask>": 4, "<sep>": 2}


def test_others_are_the_last_ids_of_the_model_in_their_order(imported):
    names = tuple(map(special_tokens.sentinel, range(3)))
    # A word of the vocabulary is text, whatever it looks like.
    assert special_tokens.ids(names, imported, 20) == {names[0]: 19, names[1]: 5, names[2]: 18}
    assert special_tokens.created(names, imported) == [names[0], names[2]]
    assert special_tokens.ids(names, None, 20) == {names[0]: 19, names[1]: 18, names[2]: 17}


def test_a_vocabulary_without_room_is_refused_by_name(imported):
    with pytest.raises(ValueError, match="has 8 tokens and none named <extra_id_0>, and model.vocab_size is 8"):
        special_tokens.ids(("<mask>", "<extra_id_0>"), imported, 8)


def test_objectives_use_the_imported_tokens(imported):
    row = {
        "tokens": np.full(21, 6, np.int32),
        "segment_ids": np.ones(21, np.int32),
        "positions": np.arange(21, dtype=np.int32),
    }
    examples = MaskedLMConfig(masked=1.0, random=0.0).examples(bert(1, 2, 8, vocab_size=30), imported, 20)
    masked = examples.row(row, np.random.default_rng(0))
    assert set(masked["inputs"][masked["at"][masked["loss_weights"] > 0]]) == {4}
    examples = SpanCorruptionConfig(rate=0.3).examples(t5(1, 2, 8, hidden=16, vocab_size=30), imported, 20)
    corrupted = examples.row(row, np.random.default_rng(0))
    sentinels = corrupted["targets"][corrupted["targets"] != 6]
    assert sentinels.tolist() == [29, 5, 28] and corrupted["encoder_tokens"][
        corrupted["encoder_tokens"] != 6
    ].tolist() == [29, 5]


def test_a_trained_tokenizer_has_no_name_of_text_among_its_tokens(tmp_path):
    text = ["the <mask> of the red fox and the blue fox"] * 50
    tokenizer = TrainSentencePieceConfig(vocab_size=300).build(lambda: text, tmp_path, "x")
    assert tokenizer.token_id("<mask>") is None and tokenizer.token_id("<s>") == tokenizer.bos_id
