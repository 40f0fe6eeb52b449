import json

import numpy as np
import pytest

from llm_jax.checkpoints.record import CheckpointRecord, Damaged, Identity, SavedLeaf

DATA = {"iterator": b"\x00\xff state", "shards": [{"position": 3, "done": False}, None], "share": 0.1, "big": 2**90}


def _record(**changes) -> CheckpointRecord:
    run = Identity("= a\nb = 1\n", "0123456789abcdef", "fedc", {"run": "runs/a", "step": 3})
    fields = dict(step=7, run=run, data=DATA, loop={"tokens": 5})
    return CheckpointRecord(
        **fields
        | {"metrics": {"validation/loss": 1.5}, "leaves": {"params/kernel": SavedLeaf((2, 3), "float32", 2**32 - 1)}}
        | changes
    )


def test_a_record_survives_json():
    assert CheckpointRecord.from_json(json.loads(json.dumps(_record().to_json()))) == _record()


def test_any_change_of_its_text_is_noticed():
    value = _record().to_json()
    for position in range(0, len(value["text"]), 7):
        changed = value["text"][:position] + chr(ord(value["text"][position]) ^ 1) + value["text"][position + 1 :]
        with pytest.raises(Damaged, match="checksum"):
            CheckpointRecord.from_json(value | {"text": changed})


@pytest.mark.parametrize("value", [np.int64(3), np.zeros(2), (1, 2), {1: "a"}, object()])
def test_what_would_not_come_back_equal_is_refused(value):
    with pytest.raises(ValueError, match=r"data\.nested\.0 is a .*convert it first"):
        _record(data={"nested": [value]}).to_json()
