"""A program, to be run with eight fake devices: the contrastive loss of one batch over them and on one, as JSON."""

import json

import jax
import numpy as np

from llm_jax.data.feed import global_batch
from llm_jax.models.build import build
from llm_jax.models.families.bert import bert
from llm_jax.objectives.contrastive import ContrastiveConfig
from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import DataParallel, ShardingConfig
from tests.helpers import tiny
from tests.helpers.made_rows import batch_of
from tests.helpers.small_tokenizers import tokenizer

OBJECTIVE = ContrastiveConfig(pair="other", pooling="mean")
MODEL = bert(1, 2, 8, vocab_size=264, max_length=16)
RECORDS = [{"text": f"text {i}", "other": f"{i} other"} for i in range(16)]


def main() -> None:
    model, found = build(MODEL), {}
    params = tiny.parameters(model)
    batch = batch_of(OBJECTIVE, MODEL, tokenizer("byte"), 16, RECORDS, packed=True)
    for devices in (1, 8):
        layout = Layout.of(ShardingConfig(MeshConfig(data=devices), DataParallel()), jax.devices()[:devices])
        with partition.activate(layout):
            placed = global_batch(batch, layout.rows)
            step = jax.jit(jax.value_and_grad(lambda params, batch: OBJECTIVE.loss(model, params, batch)[0]))
            loss, gradient = step(params, placed)
        norm = float(np.sqrt(sum(np.square(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(gradient))))
        held = len(placed.texts[0].tokens_BT.sharding.device_set)
        found[str(devices)] = {"loss": float(loss), "norm": norm, "devices": held}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
