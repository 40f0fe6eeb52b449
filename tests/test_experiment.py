import dataclasses
import math

import optax
import pytest

from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.core import config_text
from llm_jax.data import MarkovConfig, MixtureConfig, WeightedSource
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import Experiment, SampleConfig, load_experiment
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.expert_choice import ExpertChoiceConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.families import SIZES
from llm_jax.models.families.decoder import with_experts
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import ContextParallel, ExpertParallel, PipelineParallel, ShardingConfig
from llm_jax.tokenizers import ByteTokenizerConfig
from llm_jax.train.step import StepConfig
from tests.helpers import tiny_run


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    return tiny_run.experiment(tmp_path)


def test_a_file_gives_its_experiment(tmp_path):
    file = tiny_run.write_experiment(tmp_path / "lab")
    assert load_experiment(file) == load_experiment(str(file)) == tiny_run.experiment(tmp_path / "lab")


def test_overrides_reach_every_depth_and_touch_nothing_else(tmp_path):
    file = tiny_run.write_experiment(tmp_path / "lab")
    words = ["--steps", "20", "--optimizer.peak-lr", "1e-3", "--model.segments.0.blocks.0.dropout", "0.5"]
    changed, plain = load_experiment(file, words), load_experiment(file)
    assert changed.steps == 20 and changed.optimizer.peak_lr == 1e-3
    assert changed.model.segments[0].blocks[0].dropout == 0.5
    (segment,) = plain.model.segments
    block = dataclasses.replace(segment.blocks[0], dropout=0.5)
    model = dataclasses.replace(plain.model, segments=(dataclasses.replace(segment, blocks=(block,)),))
    optimizer = dataclasses.replace(plain.optimizer, peak_lr=1e-3)
    assert changed == dataclasses.replace(plain, steps=20, optimizer=optimizer, model=model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no function experiment()"),
        ("def experiment(): return 3", "experiment() of {file} is a int: return an Experiment"),
        ("def experiment(): pass", "is a NoneType: return an Experiment"),
        ("experiment = 3", "experiment is of type int; write `def experiment():`"),
        ("def experiment(size): pass", "it must not require arguments; the file has experiment(size)"),
        (
            "def experimnt(): pass",
            "defines no function experiment() that returns an Experiment; did you mean 'experimnt'",
        ),
    ],
)
def test_a_file_without_an_experiment_is_refused(tmp_path, text, message):
    file = tmp_path / "file.py"
    file.write_text(text)
    with pytest.raises(ValueError, match="(?i)experiment") as error:
        load_experiment(file)
    assert message.format(file=file) in str(error.value)


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    tiny_run.write_experiment(tmp_path / "lab")
    with pytest.raises(ValueError, match=r"no experiment file .*experimnt.py; did you mean '.*experiment.py'"):
        load_experiment(tmp_path / "lab" / "tiny_experimnt.py")
    with pytest.raises(ValueError, match=r"absent.py$"):
        load_experiment(tmp_path / "nowhere" / "absent.py")


def test_two_files_of_one_name_do_not_meet(tmp_path):
    files = [tiny_run.write_experiment(tmp_path / name) for name in ("one", "two")]
    paths = [load_experiment(file).data.source.source.paths for file in files]
    assert paths == [(str(tmp_path / name / "corpus"),) for name in ("one", "two")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("steps=1", ["--steps", "20"]),
        ("steps=2.5", ["--steps", "20"]),
        ("optimizer=AdamWConfig(peak_lr=-1)", ["--optimizer.peak-lr", "1e-3"]),
        ("objective=CausalLMConfig(chunks=5)", ["--objective.chunks=2"]),
    ],
)
def test_overrides_correct_values_of_the_file_that_break_a_rule(tmp_path, change, words):
    file = tiny_run.write_experiment(tmp_path / "lab")
    valid = load_experiment(file)
    file.write_text(
        f"from pathlib import Path\nfrom tests.helpers import tiny_run\nfrom {__name__} import *\n"
        f"def experiment():\n    return tiny_run.experiment(Path(__file__).parent, {change})\n"
    )
    for wrong in ([], ["--log-every", "2"]):
        with pytest.raises(ValueError) as error:
            load_experiment(file, wrong)
        assert f"{file}:5: " in str(error.value) or "tiny_run.py:" in str(error.value)
    loaded = load_experiment(file, words)
    assert type(loaded) is type(valid) and loaded.model == valid.model and loaded.steps in (12, 20)
    with pytest.raises(ValueError, match="log_every is 0"):
        load_experiment(file, [*words, "--log-every", "0"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"log_every": 0}, "log_every is 0"),
        ({"name": ""}, "name is ''"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"name": ".."}, "name is '..'"),
        ({"name": "."}, "name is '.'"),
        ({"update": StepConfig(accumulate=3)}, "update.accumulate is 3"),
        ({"objective": CausalLMConfig(chunks=5)}, "objective.chunks is 5"),
        ({"steps": 2}, "warmup_steps is 2 and the run has 2 steps"),
        ({"steps": 2e1}, "Experiment.steps is 20.0: it must be an int; write 20"),
        ({"steps": math.inf}, "Experiment.steps is inf: it must be an int"),
        ({"seed": -1}, "seed is -1: a seed must be at least 0 and less than 2^32"),
        ({"seed": 2**32}, "seed is 4294967296: a seed must be at least 0 and less than 2^32"),
        ({"model": SIZES["t5-small"]()}, "CausalLMConfig trains decoders and model is of type EncoderDecoderConfig"),
        ({"model": SIZES["bert-base"]()}, "MaskedLMConfig trains encoders"),
        ({"optimizer": optax.adamw(1e-3)}, "Experiment.optimizer is of type optax"),
        ({"data": None}, "Experiment.data is None: it must be DataConfig"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(experiment, change, message):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(experiment, **change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("stages", "strategy", "message"),
    [
        (4, PipelineParallel(4), "mesh.stage is 4 and the segments without shared weights have repeats (2,)"),
        (2, PipelineParallel(2, virtual_stages=2), "stages * virtual_stages = 4"),
        (2, PipelineParallel(4), "a batch has 2 sequences"),
    ],
)
def test_what_no_pipeline_can_cut_is_refused(experiment, stages, strategy, message):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(experiment, sharding=ShardingConfig(MeshConfig(stage=stages), strategy))
    assert message in str(error.value)
    dataclasses.replace(experiment, sharding=ShardingConfig(MeshConfig(stage=2), PipelineParallel(2)))


@pytest.mark.parametrize(
    ("experts", "devices", "message"),
    [
        (None, 2, "mesh.expert is 2 and the model has no MoE layers"),
        (6, 4, "mesh.expert is 4 and layers have 6 experts"),
        (6, 3, None),
        (6, -1, None),
    ],
)
def test_an_expert_axis_that_experts_do_not_fit_is_refused(experiment, experts, devices, message):
    model = experiment.model
    if experts is not None:
        model = with_experts(model, MoEConfig(experts, MLPConfig(8), SoftmaxConfig(2)))
    data = 1 if devices == -1 else -1
    change = {"model": model, "sharding": ShardingConfig(MeshConfig(data=data, expert=devices), ExpertParallel())}
    if message is None:
        assert dataclasses.replace(experiment, **change).model == model
        return
    with pytest.raises(ValueError) as error:
        dataclasses.replace(experiment, **change)
    assert message in str(error.value) and "set it to" in str(error.value)


@pytest.mark.parametrize(
    ("layer", "context", "message"),
    [
        ((SoftmaxConfig(2), Capacity(group=8)), 2, None),
        ((SoftmaxConfig(2), Capacity()), 2, "group is a sequence and a device holds 8 of the 16 tokens"),
        ((SoftmaxConfig(2), Dropless()), 2, None),
        ((ExpertChoiceConfig(2.0, 8, allow_future=True), Dropless()), 2, None),
        (
            (ExpertChoiceConfig(2.0, 6, allow_future=True), Dropless()),
            1,
            "router.group is 6 and the length of a sequence",
        ),
        ((ExpertChoiceConfig(2.0, 8, allow_future=True), Dropless()), 4, "router.group is 8 and a device holds 4 of"),
    ],
)
def test_groups_of_tokens_that_rows_do_not_divide_into_are_refused(experiment, layer, context, message):
    model = with_experts(experiment.model, MoEConfig(4, MLPConfig(8), *layer))
    sharding = ShardingConfig(MeshConfig(context=context), ContextParallel())
    change = {"model": model, "sharding": sharding}
    if message is None:
        assert dataclasses.replace(experiment, **change).model == model
        return
    with pytest.raises(ValueError) as error:
        dataclasses.replace(experiment, **change)
    assert message in str(error.value)


def test_rows_longer_than_the_models_positions_are_refused(experiment):
    fits = dataclasses.replace(experiment.data, sequence_length=64)
    assert dataclasses.replace(experiment, data=fits).data.sequence_length == experiment.model.max_length
    with pytest.raises(ValueError, match=r"sequence_length is 65 and model.max_length is 64"):
        dataclasses.replace(experiment, data=dataclasses.replace(fits, sequence_length=65))


@pytest.mark.parametrize("kind", [PerplexityConfig, SampleConfig])
def test_intervals_are_positive(kind):
    with pytest.raises(ValueError, match="every is 0"):
        kind(every=0)


@pytest.mark.parametrize("bos", [True, False])
def test_prompts_begin_as_documents_do(experiment, tmp_path, bos):
    corpus = dataclasses.replace(experiment.data.source, bos=bos)
    changed = tiny_run.with_source(experiment, corpus)
    tokenizer = ByteTokenizerConfig().build(lambda: [], tmp_path, "")
    assert changed.prompt(tokenizer, "ab") == [tokenizer.bos_id] * bos + [97, 98]


def test_an_experiment_is_frozen(experiment):
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.optimizer = AdamWConfig(peak_lr=1.0)


def _mixture(tmp_path):
    sources = (
        WeightedSource("one", MarkovConfig(symbols=4)),
        WeightedSource("two", MarkovConfig(symbols=4), weight=1.0, changes=((2, 3.0),)),
    )
    return tiny_run.with_source(tiny_run.experiment(tmp_path), MixtureConfig(sources))


NEVER_RECORDED = ("validation/los", "loss", "validation", "test/loss", "train/loss", "validation/one/loss")


@pytest.mark.parametrize("metric", NEVER_RECORDED)
def test_a_best_metric_that_is_never_recorded_is_refused(tmp_path, metric):
    config = CheckpointConfig(best_metric=metric)
    with pytest.raises(ValueError, match=rf"best_metric is '{metric}'.*validation/loss, validation/bits_per_byte"):
        tiny_run.experiment(tmp_path, checkpoint=config)
    tiny_run.experiment(tmp_path, checkpoint=dataclasses.replace(config, keep_best=0))
    for name in ("validation/loss", "validation/bits_per_byte"):
        tiny_run.experiment(tmp_path, checkpoint=CheckpointConfig(best_metric=name))


def test_the_best_metric_is_one_that_an_evaluation_records(tmp_path):
    with pytest.raises(ValueError, match="best_metric is 'validation/loss', and the evaluations record no metric"):
        tiny_run.experiment(tmp_path, evaluations=())
    none = CheckpointConfig(keep_best=0)
    assert tiny_run.experiment(tmp_path, evaluations=(), checkpoint=none).evaluations == ()


def test_two_evaluations_do_not_record_one_metric(tmp_path):
    twice = (PerplexityConfig(every=2), PerplexityConfig(every=3))
    with pytest.raises(ValueError, match="record validation/bits_per_byte, validation/loss more than once"):
        tiny_run.experiment(tmp_path, evaluations=twice)


def test_a_mixture_records_each_set_and_their_mean_by_the_weights_it_ends_with(tmp_path):
    held_out = _mixture(tmp_path).data.held_out
    assert set(held_out.names) == {"validation/one/loss", "validation/two/loss", "validation/loss"}
    with pytest.raises(ValueError, match="best_metric is 'validation/three/loss'.*did you mean 'validation/"):
        dataclasses.replace(_mixture(tmp_path), checkpoint=CheckpointConfig(best_metric="validation/three/loss"))
    found = held_out.figures({"validation/one": {"loss": 1.0, "accuracy": 0.5}, "validation/two": {"loss": 2.0}})
    assert found == {"validation/one/loss": 1.0, "validation/two/loss": 2.0, "validation/loss": (1 * 1 + 3 * 2) / 4}
    assert held_out.figures({"validation/one": {"loss": 1.0}}) == {"validation/one/loss": 1.0}


def test_a_record_that_names_the_former_place_of_a_config_is_read(experiment):
    text = config_text.to_text(experiment)
    former = text.replace("checkpoint_config.CheckpointConfig", "manager.CheckpointConfig")
    assert former != text and config_text.parse(former) == experiment
