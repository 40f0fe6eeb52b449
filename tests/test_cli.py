"""The commands, their options and their messages. What training does is tests/integration's."""

import importlib
import re
from pathlib import Path

import jax
import pytest

from llm_jax import cli
from llm_jax.cli import COMMANDS, train
from llm_jax.cli import devices as settings
from llm_jax.core import config_text
from llm_jax.core.run_directory import RunDirectory
from llm_jax.experiment import SampleConfig, load_experiment
from llm_jax.interop.families import FAMILIES
from llm_jax.layers import RMSNormConfig
from llm_jax.models.families import MODULES, SIZES
from llm_jax.optim import (
    WSD,
    AdamWConfig,
    Cosine,
    DecayMatching,
    InverseSqrt,
    LionConfig,
    MuonConfig,
    SGDConfig,
)
from llm_jax.parity import table
from llm_jax.parity.models import MODELS
from tests.helpers import tiny_run
from tests.helpers.command_line import llm_jax, start, wait


@pytest.fixture
def file(tmp_path):
    return tiny_run.write_experiment(tmp_path / "lab")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_overview_names_every_command(words):
    outcome = llm_jax(*words)
    assert outcome.code == 0
    assert all(f"  {command} " in outcome.out for command in COMMANDS)


def test_every_command_is_a_file_whose_help_begins_as_the_overview_says():
    for name, line in COMMANDS.items():
        options = getattr(importlib.import_module(f"llm_jax.cli.{name}"), name.capitalize())
        assert options.__doc__.splitlines()[0] == line
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py") if "\ndef run(" in path.read_text()}
    assert files == set(COMMANDS)


def test_an_unknown_command_is_refused_with_the_nearest_one():
    outcome = llm_jax("trian", "x.py")
    assert outcome.code != 0
    assert "there is no command 'trian'; did you mean 'train'?" in outcome.said
    assert "did you mean" not in llm_jax("zzz").said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    outcome = llm_jax(command, "--help")
    assert outcome.code == 0
    assert COMMANDS[command].rstrip(".") in outcome.said


@pytest.mark.parametrize("command", ["train", "show"])
def test_the_fields_of_an_experiment_explain_themselves(file, command):
    outcome = llm_jax(command, file, "--help")
    assert outcome.code == 0
    assert "A tiny experiment, for tests." in outcome.said
    assert "--optimizer.peak-lr" in outcome.said and "Maximum learning rate" in outcome.said


def test_help_joins_nobody(file):
    alone = ("--hosts.address", "localhost:9", "--hosts.count", 2, "--hosts.index", 1, "--hosts.arrival-seconds", 1)
    outcome = llm_jax("train", file, *alone, "--help")
    assert outcome.code == 0 and "--optimizer.peak-lr" in outcome.said


def test_show_prints_the_resolved_experiment(file):
    outcome = llm_jax("show", file, "--steps", 99)
    assert outcome.code == 0
    assert config_text.parse(outcome.out) == load_experiment(file, ["--steps", "99"])
    assert "steps = 99\n" in outcome.out and "steps = 99\n" not in llm_jax("show", file).out


@pytest.mark.parametrize("command", ["train", "show"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizer.peek-lr", 1), "Perhaps you meant: --optimizer.peak-lr"),
        (("--steps", "many"), "--steps is 'many': it must be an int, such as 12 in"),
        (("--steps", "1.5"), "--steps is '1.5': it must be an int"),
        (("--steps=1e3",), "--steps is '1e3': it must be an int"),
        (("--optimizer.peak-lr", "fast"), "--optimizer.peak-lr is 'fast': it must be a float, such as 0.01"),
        (("--optimizer.peak-lr", "nan"), "AdamWConfig.peak_lr is nan: it must be a finite float"),
        (("--optimizer.clip-norm", "off"), "it must be a float or None"),
        (
            ("--optimizer", "moun"),
            "'moun': it must be one of adafactor, adamw, lion, muon, schedulefreeadamw, sgd; did",
        ),
        (("--optimizer",), "--optimizer has no value: write --optimizer and one of adafactor, adamw"),
        (("--optimizer",), "its fields are --optimizer.peak-lr, --optimizer.schedule"),
        (("--optimizer", "sgd", "--optimizer.b2", 0.9), "Unrecognized options"),
        (("--optimizer.schedule=wsdd",), "did you mean 'wsd'?"),
        (("--optimizer.schedule", "cosine", "--optimizer.schedule.warmup-steps", 99), "warmup_steps is 99"),
        (("--model.segments.0.blocks.0.ffn", "moe"), "--model.segments.0.blocks.0.ffn.count"),
        (
            ("--precision", "bfloat16"),
            "the command line changes values and kinds of components, not this; set precision",
        ),
        (("--model.segments", "3"), "set model.segments in"),
        (("--sharding.schedule", "x"), "Unrecognized options"),
        (("--steps",), "--steps"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(file, command, words, message):
    outcome = llm_jax(command, file, *words)
    assert outcome.code != 0
    assert message in outcome.said


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--optimizer", "lion"), LionConfig(peak_lr=1e-2, schedule=Cosine(warmup_steps=2), weight_decay=0.1)),
        (("--optimizer=Muon-Config",), MuonConfig(peak_lr=1e-2, schedule=Cosine(warmup_steps=2), weight_decay=0.1)),
        (
            ("--optimizer", "sgd", "--optimizer.schedule", "wsd", "--optimizer.schedule.decay-fraction", 0.5),
            SGDConfig(peak_lr=1e-2, schedule=WSD(warmup_steps=2, decay_fraction=0.5), weight_decay=0.1),
        ),
        (("--optimizer.schedule", "inverse-sqrt"), AdamWConfig(peak_lr=1e-2, schedule=InverseSqrt(warmup_steps=2))),
        (
            ("--optimizer.decay-mask", "decay-matching", "--optimizer.decay-mask.patterns", "kernel"),
            AdamWConfig(peak_lr=1e-2, schedule=Cosine(warmup_steps=2), decay_mask=DecayMatching(("kernel",))),
        ),
    ],
)
def test_components_are_chosen_by_name_and_keep_what_their_kind_has(file, words, wanted):
    outcome = llm_jax("show", file, *words)
    assert outcome.code == 0, outcome.said
    assert config_text.parse(outcome.out).optimizer == wanted


def test_a_component_can_be_left_out(file):
    assert load_experiment(file, ["--model.segments.0.blocks.0.ffn", "none"]).model.segments[0].blocks[0].ffn is None
    assert type(load_experiment(file, ["--model.final-norm", "rms"]).model.final_norm) is RMSNormConfig


def test_a_mesh_of_no_devices_is_refused(file):
    for devices in (0, -3):
        outcome = llm_jax("shardings", file, "--devices", devices)
        assert outcome.code != 0 and f"devices is {devices}: it must be greater than 0" in outcome.said


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"samples": SampleConfig(prompts=("To be,",))}, "--prompt 'To be,'"),
        ({}, "--prompt TEXT"),
        ({"tokenizer": None}, ""),
    ],
)
def test_the_hint_after_training_is_of_this_experiment(tmp_path, change, hint):
    said = train._next_commands(RunDirectory(tmp_path / "tiny"), tiny_run.experiment(tmp_path, **change))
    assert ("llm-jax generate" in said) == bool(hint)
    assert hint in said and "llm-jax report" in said


@pytest.mark.parametrize("command", ["train", "show"])
def test_a_missing_file_is_refused_with_the_nearest_one(file, command):
    outcome = llm_jax(command, file.with_name("tiny_experimnt.py"))
    assert outcome.code != 0
    assert f"did you mean '{file}'?" in outcome.said
    assert llm_jax(command).code != 0


def test_a_misspelt_option_of_the_command_is_refused_with_the_nearest_one(file):
    outcome = llm_jax("train", file, "--runs-dirs", "x")
    assert outcome.code != 0
    assert "did you mean '--runs-dir'" in outcome.said


def test_a_mistake_ends_the_process_with_a_message_and_no_traceback(tmp_path):
    outcome = wait(start("generate", tmp_path / "absent", "--prompt", "a"))
    assert outcome.code == 1
    assert outcome.err.strip().splitlines()[-1].startswith("llm-jax generate: ")
    assert "is not a run directory" in outcome.err and "Traceback" not in outcome.err


def test_families_lists_every_size_and_proof():
    outcome = llm_jax("families")
    assert outcome.code == 0
    lines = [line.split() for line in outcome.out.splitlines()]
    assert {line[1] for line in lines if len(line) > 4} >= set(SIZES)
    proofs = {line[0]: float(line[2]) for line in lines if len(line) > 3 and line[0] in FAMILIES and "e-" in line[2]}
    assert set(proofs) == set(FAMILIES) and max(proofs.values()) <= 1e-4
    rows = {line.split()[1]: line.split() for line in outcome.out.split("\n\n")[0].splitlines()[1:]}
    assert rows.keys() == SIZES.keys()
    assert rows["gpt2"] == ["gpt2", "gpt2", "12", "768", "124.4M", "-", rows["gpt2"][6], "gpt2,", "gpt_bigcode"]
    assert rows["albert-xxlarge"][2:] == ["12", "4096", "206.4M", "-", rows["albert-xxlarge"][6], "albert"]
    assert rows["t5-small"] == ["t5", "t5-small", "6+6", "512", "60.51M", "-", rows["t5-small"][6], "t5"]
    assert rows["mixtral-8x7b"][4:6] == ["46.7B", "12.88B"]
    assert rows["transformer-base"][6:] == ["properties", "-"]
    assert all(row[6] == "properties" or float(row[6]) <= 1e-4 for row in rows.values())


def test_families_shows_what_parameters_are_drawn_from():
    outcome = llm_jax("families", "--init")
    assert outcome.code == 0
    shown = {part.split(" ", 1)[0]: part for part in outcome.out.split("\n\n")}
    assert re.search(r"embed\.init +N\(0, 1\)\n", shown["palm"]) and "arXiv:2204" not in shown["palm"]
    assert re.search(r"embed\.position\.init +N\(0, 0\.01\)\n", shown["gpt2"])
    assert re.search(r"mixer\.init +N\(0, 0\.02\) cut at 2 deviations\n", shown["bert"])
    assert re.search(r"ffn\.init +N\(0, 0\.3162 / sqrt\(fan-in\)\) cut at 2", shown["switch"])
    assert shown.keys() == {module.__name__.rpartition(".")[2] for module in MODULES}


def test_params_says_what_a_size_costs():
    outcome = llm_jax("params", "llama2-70b", "--length", 1024)
    assert outcome.code == 0
    assert "68,976,648,192 (68.98B)" in outcome.out and "64 of 128, 8 key/value" in outcome.out
    # Two of 8 heads of 128 in bfloat16, over 80 layers.
    assert f"{2 * 2 * 8 * 128 * 80 * 1024 / 2**20:,.1f} MiB at 1,024 tokens" in outcome.out
    assert "68,976,648,192 (dense: all)" in outcome.out


def test_params_of_a_mixture_tells_those_that_compute_a_token():
    outcome = llm_jax("params", "mixtral-8x7b")
    assert outcome.code == 0
    # Six of eight experts of three matrices, in 32 layers, are not visited.
    idle = 32 * 6 * 3 * 4096 * 14336
    assert "46,702,792,704 (46.7B)" in outcome.out and f"{46_702_792_704 - idle:,} (12.88B)" in outcome.out


def test_params_of_an_encoder_and_of_a_pair():
    outcome = llm_jax("params", "bert-base")
    assert outcome.code == 0 and "109,514,298 (109.5M)" in outcome.out
    outcome = llm_jax("params", "t5-small", "--length", 256)
    assert outcome.code == 0
    assert "60,506,624 (60.51M)" in outcome.out and "6 + 6" in outcome.out and "32,128" in outcome.out
    # Keys and values of 8 heads of 64 in bfloat16, of the target and of the source, over 6 layers.
    assert f"{2 * 2 * 2 * 8 * 64 * 6 * 256 / 2**20:,.1f} MiB at 256 tokens" in outcome.out


def test_the_names_that_parity_takes_are_in_its_help():
    said = llm_jax("parity", "--help").said.replace(";", ",").replace('"', "")
    assert all(f"{model}, " in said for model in MODELS)
    with pytest.raises(ValueError, match="there is no x: choose from 'data parallel', 'pmap', "):
        next(table.matrix(strategies=["x"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("params", "llama2-7"), "there is no size 'llama2-7'; did you mean 'llama2-7b'?"),
        (("params", "gpt2", "--length", 0), "length is 0 and the model's max_length is 1024"),
        (("convert", "absent", "there"), "absent is neither a run nor a transformers folder"),
    ],
)
def test_what_cannot_be_said_or_converted_is_refused(words, message):
    outcome = llm_jax(*words)
    assert outcome.code != 0 and message in outcome.said


@pytest.mark.parametrize(("count", "cached"), [(1, True), (8, False)])
def test_several_cpu_devices_use_no_compilation_cache(monkeypatch, tmp_path, count, cached):
    """XLA ends the process at a program with collectives that it reads from there."""
    for prepare in (lambda: settings.simulate(count), lambda: settings.keep_compiled_programs(tmp_path)):
        changed = {}
        monkeypatch.setattr(jax.config, "update", changed.__setitem__)
        monkeypatch.setattr(jax, "local_device_count", lambda: count)
        prepare()
        assert changed.get("jax_enable_compilation_cache", True) == cached
