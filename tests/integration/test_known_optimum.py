"""Sources whose entropy is known: a trained model comes close to it, and none can be below."""

import dataclasses
import math

import pytest

from llm_jax.assemble import assemble
from llm_jax.data import CopyConfig, DataConfig, MarkovConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import Experiment
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.optim import AdamWConfig, Cosine
from llm_jax.training_run import run_training

TASKS = {
    # How near to its optimum a model of this size and length of training comes.
    "markov": (MarkovConfig(symbols=8, concentration=0.3, evaluation_rows=256), 1.05),
    "copy": (CopyConfig(symbols=8, length=4, evaluation_rows=256), 1.05),
}


def experiment(name: str, source) -> Experiment:
    return Experiment(
        name=name,
        steps=300,
        tokenizer=None,
        data=DataConfig(source, sequence_length=32, batch_size=16),
        # Learned positions, with which one layer can look back to a place.
        model=gpt2(layers=1, heads=2, width=32, vocab_size=9, max_length=32),
        optimizer=AdamWConfig(peak_lr=1e-2, schedule=Cosine(warmup_steps=10), weight_decay=0.0),
        evaluations=(PerplexityConfig(every=300),),
        log_every=10,
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_training_reaches_the_optimum_and_not_less(tmp_path, cache, task):
    source, reached = TASKS[task]
    trained = experiment("trained", source)
    (held_out,) = assemble(trained, cache).dataset.evaluation("validation")
    records = list(run_training(trained, tmp_path, cache).records())
    (found,) = [record for record in records if record["kind"] == "eval/validation"]
    optimum = held_out.optimal_loss
    # Four standard errors of the mean of a loss whose spread is about its size.
    noise = 4 * optimum / math.sqrt(found["targets"])
    assert math.log(trained.model.vocab_size) > 1.2 * optimum
    assert optimum - noise < found["loss"] < reached * optimum


def test_an_optimum_belongs_to_its_source():
    # Otherwise the comparison above would hold one model to another's measure.
    tables = [MarkovConfig(symbols=8, table_seed=seed).task(33).optimal_loss for seed in (0, 1)]
    assert tables[0] != tables[1] < math.log(8)
    assert dataclasses.replace(MarkovConfig(), symbols=8).task(33).optimal_loss == pytest.approx(tables[0])
