import dataclasses

import jax
import numpy as np
import pytest

from llm_jax.assemble import assemble
from llm_jax.core.run_directory import RunDirectory
from llm_jax.data import ModularAdditionConfig
from llm_jax.hosts.process_group import ProcessGroup
from llm_jax.models import count
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.train.step import StepConfig
from llm_jax.training_run import _check_hosts, run_training
from tests.helpers import tiny_run
from tests.hosts.connections import connections, everywhere


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assemble")
    tiny_run.write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def parts(lab):
    return assemble(tiny_run.experiment(lab), lab / "cache")


def test_the_abstract_state_is_that_of_the_state(parts):
    state = parts.initial_state()
    assert jax.tree.structure(state) == jax.tree.structure(parts.programs.abstract_state)
    for leaf, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(parts.programs.abstract_state), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (abstract.shape, abstract.dtype, abstract.sharding)


def test_the_model_has_as_many_parameters_as_its_config_says(parts):
    leaves = jax.tree.leaves(parts.programs.abstract_state.params)
    assert sum(leaf.size for leaf in leaves) == count.parameters(parts.experiment.model)


def test_the_seed_decides_the_weights(lab, parts):
    other = assemble(tiny_run.experiment(lab, seed=1), lab / "cache").initial_state()
    one, two = parts.initial_state(), parts.initial_state()
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_array_equal(a, b)
    embed = [state.params["embed"] for state in (one, other)]
    assert not np.array_equal(jax.tree.leaves(embed[0])[0], jax.tree.leaves(embed[1])[0])


def test_the_average_is_what_is_evaluated_where_one_is_kept(lab, parts):
    state = parts.initial_state()
    moved = state.replace(params=jax.tree.map(lambda x: x + 1, state.params))
    plain = assemble(tiny_run.experiment(lab, update=StepConfig()), lab / "cache")
    for weights, expected in ((parts.programs.weights, state.params), (plain.programs.weights, moved.params)):
        average = moved.ema if expected is state.params else None
        for a, b in zip(
            jax.tree.leaves(weights(moved.replace(ema=average)).params), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_placed_rows_are_inputs_and_their_successors(parts):
    rows = next(parts.dataset.train_iterator())
    batch = parts.place(rows)
    np.testing.assert_array_equal(batch.inputs.tokens_BT, rows["tokens"][:, :-1])
    np.testing.assert_array_equal(batch.targets_BT, rows["tokens"][:, 1:])
    assert parts.share == (0, 1)


def test_a_vocabulary_larger_than_the_models_is_refused(lab):
    model = gpt2(layers=1, heads=2, width=16, vocab_size=258, max_length=64)
    with pytest.raises(ValueError, match="259 different tokens and model.vocab_size is 258"):
        assemble(tiny_run.experiment(lab, model=model), lab / "cache")


def test_text_needs_a_tokenizer_and_synthetic_tokens_none(lab):
    with pytest.raises(ValueError, match="needs a tokenizer"):
        assemble(tiny_run.experiment(lab, tokenizer=None), lab / "cache")
    experiment = tiny_run.experiment(lab, tokenizer=None)
    made = assemble(tiny_run.with_source(experiment, ModularAdditionConfig()), lab / "cache")
    assert made.tokenizer is None and made.dataset.vocab_size == 98


def test_a_mesh_that_does_not_fit_the_devices_is_refused(lab):
    experiment = tiny_run.experiment(lab)
    mesh = dataclasses.replace(experiment.sharding.mesh, data=jax.device_count() + 1)
    sharding = dataclasses.replace(experiment.sharding, mesh=mesh)
    with pytest.raises(ValueError, match="does not fit"):
        assemble(dataclasses.replace(experiment, sharding=sharding), lab / "cache")


def test_processes_that_jax_joined_and_hosts_did_not_are_refused(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="jax runs on 2 processes and `hosts` has 1: instead of"):
        run_training(tiny_run.experiment(lab), tmp_path, lab / "cache")
    assert list(tmp_path.iterdir()) == []


def _complaints(parts, runs) -> list[str]:
    """What two hosts say of their parts and run directories; empty texts if they agree."""

    def check(case) -> str:
        group, own_parts, run = case
        try:
            _check_hosts(group, own_parts, run)
        except ValueError as error:
            return str(error)
        return ""

    with connections(2) as (opened, _):
        groups = [ProcessGroup(line, ["a", "b"]) for line in opened]
        return everywhere(list(zip(groups, parts, runs, strict=True)), check)


def test_hosts_must_see_one_run_directory_and_the_same_data(lab, parts, tmp_path):
    shared, own = RunDirectory(tmp_path / "shared"), RunDirectory(tmp_path / "own")
    shared.open(parts.experiment)
    assert _complaints([parts, parts], [shared, shared]) == ["", ""]
    said = _complaints([parts, parts], [shared, own])
    assert said[0] == said[1] and "--runs-dir must put on a file system that they share" in said[0]
    assert "host 1 (b): experiment.txt is absent, not " in said[0]
    shared.experiment_file.write_text("a config that only the user's own code knows")
    assert _complaints([parts, parts], [shared, shared]) == ["", ""]
    tiny_run.write_corpus(tmp_path / "other", documents=30)
    other = assemble(tiny_run.experiment(tmp_path / "other"), tmp_path / "cache")
    said = _complaints([parts, other], [shared, shared])
    assert said[0] == said[1] and "do not agree on the data" in said[0] and "host 1 (b): digest is" in said[0]
