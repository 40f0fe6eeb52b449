"""The updates of variants are timed side by side."""

import dataclasses

from llm_jax.models.families.llama import llama
from llm_jax.variants import update_seconds
from tests.helpers import tiny_run


def test_a_deeper_model_takes_longer_for_an_update(tmp_path):
    base = tiny_run.experiment(tmp_path)
    model = base.model
    variants = {
        f"{layers}": dataclasses.replace(base, model=llama(layers, 2, 64, hidden=256, vocab_size=model.vocab_size))
        for layers in (1, 12)
    }
    seconds = update_seconds(variants, rounds=3)
    assert list(seconds) == ["1", "12"] and 0 < 2 * seconds["1"] < seconds["12"]
