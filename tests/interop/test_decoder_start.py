import json

import pytest

from llm_jax.interop import decoder_start


@pytest.mark.parametrize(
    ("config", "generation", "start"),
    [
        ({"decoder_start_token_id": 0}, None, (0,)),
        ({"decoder_start_token_id": 0}, {"decoder_start_token_id": 2}, (2,)),
        ({"decoder_start_token_id": 3}, {"eos_token_id": 2}, (3,)),
        ({"decoder_start_token_id": 2, "forced_bos_token_id": 0}, None, (2, 0)),
        ({"decoder_start_token_id": 2}, {"forced_bos_token_id": 7}, (2, 7)),
        ({"bos_token_id": 5}, None, (5,)),
    ],
)
def test_a_decoder_begins_as_in_transformers(config, generation, start, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert decoder_start(tmp_path) == start


@pytest.mark.parametrize("value", [None, "0", -1, True, 1.0])
def test_what_is_no_token_is_refused(value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"decoder_start_token_id": value}))
    message = "states no decoder_start_token_id: add it" if value is None else "decoder_start_token_id = .*token id"
    with pytest.raises(ValueError, match=message):
        decoder_start(tmp_path)
