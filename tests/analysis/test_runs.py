"""A run directory comes back as the arrays that were recorded in it, whatever state the run is in."""

import dataclasses

import numpy as np
import pytest

from llm_jax.analysis.runs import differences, held_out_set, labels, last, load_run, median, setting, swept
from llm_jax.core.run_directory import RunDirectory


def test_curves_hold_what_was_recorded(make_run, train_record, eval_record):
    run = load_run(
        make_run(
            "one",
            [
                train_record(10, 3.0),
                eval_record("validation", 10, 3.2, bits_per_byte=2.5),
                train_record(20, 2.0, mfu=0.4),
                eval_record("validation", 20, 2.2, bits_per_byte=1.9),
                {"kind": "checkpoint", "step": 20, "time": 200.0},
                {"kind": "baseline/gzip-9", "step": 0, "bits_per_byte": 1.65},
            ],
        )
    )
    assert run.name == "one"
    np.testing.assert_array_equal(run.train["step"], [10, 20])
    np.testing.assert_array_equal(run.train["loss"], [3, 2])
    np.testing.assert_array_equal(run.train["mfu"], [np.nan, 0.4])
    assert set(run.evals) == {"validation"}
    np.testing.assert_array_equal(run.evals["validation"]["bits_per_byte"], [2.5, 1.9])
    assert "set" not in run.evals["validation"]
    assert run.baselines == {"gzip-9": 1.65}
    assert run.seconds == 200 - 105
    assert last(run.train, "loss") == 2 and last(run.train, "absent") is None
    assert median(run.train, "loss") == 2.5 and median(run.train, "mfu") == 0.4


def test_a_run_without_metrics_is_a_run(make_run):
    run = load_run(make_run())
    assert (run.train, run.evals, run.baselines, run.card, run.facts) == ({}, {}, {}, {}, {})
    assert run.samples == () and run.seconds == 0
    assert held_out_set([run]) is None


def test_resumed_and_cut_short_records_are_read_once(make_run, train_record):
    path = make_run("one", [train_record(1, 5.0), train_record(2, 4.0), train_record(2, 4.5), train_record(3, 3.0)])
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 4, "lo')
    run = load_run(path)
    np.testing.assert_array_equal(run.train["loss"], [5, 4.5, 3])


def test_fields_are_the_lines_of_the_experiment(make_run):
    run = load_run(make_run("one"))
    assert run.fields["name"] == '"one"' and run.fields["optimizer.peak_lr"] == "0.001"
    assert run.fields[""].endswith("Experiment")
    assert setting(run, "name") == "one"
    assert setting(run, "optimizer") == "AdamW"
    assert setting(run, "layers") == "[1, 2]"
    assert setting(run, "absent") == "-"


def test_differences_name_the_paths_that_differ(make_run, experiments):
    base = experiments["Experiment"](name="a")
    runs = [
        load_run(make_run("a", experiment=base)),
        load_run(make_run("b", experiment=dataclasses.replace(base, name="b", seed=1))),
        load_run(make_run("c", experiment=dataclasses.replace(base, name="c", optimizer=experiments["Lion"]()))),
    ]
    assert differences(runs[:2]) == ["name", "seed"]
    found = ["seed", "optimizer", "optimizer.peak_lr", "optimizer.decay"]
    assert differences(runs, ignore=["name"]) == found
    assert differences(runs[:1]) == []


def test_card_facts_are_those_of_the_last_start(make_run):
    path = make_run("one", card={"commit": "old"})
    RunDirectory(path).write_card(commit="new")
    run = load_run(path)
    assert len(run.card["starts"]) == 2 and run.facts == {"commit": "new"}


def test_samples_are_in_the_order_of_steps(make_run):
    run = load_run(make_run(samples={999_999: "b", 1_000_000: "c", 3: "a"}))
    assert [file.read_text() for file in run.samples] == ["a", "b", "c"]


def test_held_out_set_is_one_that_all_evaluated_runs_share(make_run, eval_record):
    validation, test = eval_record("validation", 1, 2.0), eval_record("test", 1, 2.0)
    both = load_run(make_run("both", [validation, test]))
    one = load_run(make_run("one", [validation]))
    other = load_run(make_run("other", [eval_record("books", 1, 2.0)]))
    none = load_run(make_run("none"))
    assert held_out_set([both]) == "test"
    assert held_out_set([both, one, none]) == "validation"
    assert held_out_set([one, other]) is None


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a run directory: there is no such folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a run directory: it has no experiment.txt"):
        load_run(tmp_path)


def _varied(make_run, experiments, kind="varied", **fields) -> list:
    """One run for each combination, field by field, of values of the toy experiment."""
    base = experiments["Experiment"]()
    columns = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    paths = [make_run(f"{kind}/{i}", experiment=dataclasses.replace(base, **one)) for i, one in enumerate(columns)]
    return [load_run(path) for path in paths]


def test_a_sweep_is_one_number_that_varies(make_run, experiments):
    runs = _varied(make_run, experiments, steps=(10, 10, 20, 40), seed=(0, 1, 0, 0))
    assert swept(runs) == ("steps", [10, 10, 20, 40])
    assert swept(runs[:3]) is None, "two values are no sweep"


def test_a_sweep_may_change_several_numbers_together_only(make_run, experiments):
    rates = [experiments["AdamW"](rate, decay) for rate, decay in ((1e-4, 0.1), (1e-3, 0.2), (1e-2, 0.3))]
    assert swept(_varied(make_run, experiments, "together", optimizer=rates)) == (
        "optimizer.peak_lr",
        [1e-4, 1e-3, 1e-2],
    )
    grid = [experiments["AdamW"](rate, decay) for rate in (1e-4, 1e-3, 1e-2) for decay in (0.1, 0.2)]
    assert swept(_varied(make_run, experiments, "grid", optimizer=grid)) is None
    types = [experiments["AdamW"](1e-4), experiments["AdamW"](1e-3), experiments["Lion"](1e-2)]
    assert swept(_varied(make_run, experiments, "types", optimizer=types)) is None


def test_labels_are_the_shortest_ends_that_differ(make_run):
    names = ("a/x/tiny", "b/x/tiny", "c/big")
    assert labels([load_run(make_run(name)) for name in names]) == ["a/x/tiny", "b/x/tiny", "big"]
