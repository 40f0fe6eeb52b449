"""The updates of variants are timed side by side."""

import dataclasses

from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Examples, TokenField
from llm_jax.models.families.llama import llama
from llm_jax.models.stack import Execution
from llm_jax.objectives import CausalLMConfig
from llm_jax.variants import update_seconds
from tests.helpers import tiny_run


def test_a_deeper_model_takes_longer_for_an_update(tmp_path):
    base = tiny_run.experiment(tmp_path)
    model = base.model
    variants = {
        f"{layers}": dataclasses.replace(base, model=dataclasses.replace(made, execution=Execution(unroll=1)))
        for layers in (1, 12)
        for made in [llama(layers, 2, 64, hidden=256, vocab_size=model.vocab_size)]
    }
    seconds = update_seconds(variants, rounds=3)
    assert list(seconds) == ["1", "12"] and 0 < 2 * seconds["1"] < seconds["12"]


class Counted(Examples):
    fields = (TokenField("counts", "float32"),)


@configclass
class CountedConfig(CausalLMConfig):
    """Reads a field of its own."""

    def examples(self, model, tokenizer, sequence_length):
        return Counted()

    def batch(self, rows):
        return super().batch(rows).replace(loss_weights_BT=rows["counts"][:, 1:] + 1)


def test_updates_of_an_objective_with_fields_are_timed(tmp_path):
    one = tiny_run.experiment(tmp_path, objective=CountedConfig())
    assert update_seconds({"one": one}, rounds=1)["one"] > 0
