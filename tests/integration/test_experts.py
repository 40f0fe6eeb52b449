"""A whole run of a model with experts records what they did."""

import dataclasses
import math
import re

import pytest

from llm_jax.analysis.report import write_report
from llm_jax.data import DataConfig
from llm_jax.layers.ffn.balance import BiasUpdate, SequenceLoss
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.router_scores import Jitter
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig
from llm_jax.models.stack import Segment
from llm_jax.training_run import run_training
from tests.helpers import tiny_run
from tests.helpers.command_line import llm_jax


def _experiment(folder):
    tiny_run.write_corpus(folder)
    experiment = tiny_run.experiment(folder, steps=6)
    (segment,) = experiment.model.segments
    (block,) = segment.blocks
    router, balance = SigmoidConfig(2, noise=Jitter()), (BiasUpdate(), SequenceLoss())
    experts = dataclasses.replace(block, ffn=MoEConfig(4, block.ffn, router, balance=balance))
    model = dataclasses.replace(experiment.model, segments=(Segment((block, experts), 2),))
    return dataclasses.replace(experiment, model=model)


def test_records_display_and_report_tell_what_experts_did(tmp_path, cache, capsys):
    run = run_training(_experiment(tmp_path), tmp_path, cache)
    records = list(run.records())
    train = [record for record in records if record["kind"] == "train"]
    assert len(train) == 6
    for record in train:
        assert 1 <= record["experts/max_load"] <= 2 and record["experts/dropped"] == 0
        assert 0 < record["experts/entropy"] <= math.log(4) + 1e-6
        layers = [record[f"experts/max_load/stack/segment_0/block_1/{layer}"] for layer in (0, 1)]
        assert math.isclose(record["experts/max_load"], sum(layers) / 2, rel_tol=1e-6)
    evaluated = [record for record in records if record["kind"].startswith("eval/")]
    assert evaluated and all(record["experts/max_load"] >= 1 for record in evaluated)
    shown = capsys.readouterr().err
    assert "balance_loss" in shown and "experts/" not in shown
    assert "![experts](plots/experts.png)" in write_report(run.path).read_text()
    outcome = llm_jax("experts", run.path, "--cache-dir", cache)
    assert outcome.code == 0, outcome.err
    layers = re.findall(r"stack/segment_0/block_1 [01] │ (\d\.\d{3}) │ +[0-3] \(\d+%\)", outcome.out)
    assert len(layers) == 2 and all(0 <= float(bits) <= 2 for bits in layers)
    assert (run.path / "specialisation.png").stat().st_size > 1000


def test_the_experts_of_a_dense_model_are_refused_before_its_corpus_is_read(finished, cache, monkeypatch):
    monkeypatch.setattr(DataConfig, "build", lambda *_: pytest.fail("the corpus was read"))
    outcome = llm_jax("experts", finished.path, "--cache-dir", cache)
    assert outcome.code != 0 and "the model has no MoE layer" in outcome.said
