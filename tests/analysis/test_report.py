"""A report says what the records say, to the digit, and invents nothing."""

import dataclasses
import re

import pytest

from llm_jax.analysis.report import compare, write_report
from llm_jax.core.run_directory import RunDirectory

CARD = {
    "commit": "0123abcd",
    "jax": "0.12.0",
    "device_kind": "cpu",
    "command": ["llm-jax", "train", "a file.py"],
    "config_digest": "c0ffee",
    "data_manifest_digest": "beef",
    "peak_flops": None,
    "peak_flops_source": None,
    "model": {"parameters": 6_812_345, "flops_per_token": 41_200_000},
}
BASELINES = [
    {"kind": f"baseline/{name}", "step": 0, "bits_per_byte": bits}
    for name, bits in (("gzip-9", 1.65), ("xz-9", 1.5), ("byte-5-gram", 1.82))
]


@pytest.fixture
def records(train_record, eval_record):
    return [
        *BASELINES,
        *(train_record(step, 5 - step / 50) for step in range(1, 101)),
        eval_record("validation", 50, 4.4, bits_per_byte=2.7),
        eval_record("validation", 100, 3.2, bits_per_byte=1.7),
    ]


def rows(text: str) -> dict[str, list[str]]:
    """First cell -> other cells of every table row in a Markdown text."""
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


def test_summary_and_tables_give_the_recorded_numbers(make_run, records):
    path = make_run("toy", records, CARD)
    report = write_report(path)
    assert report == path / "report.md"
    text = report.read_text()
    assert text.startswith("# toy\n")
    summary = text.split("\n\n")[1]
    # 100 records: the last fiftieth is two, of losses 3.02 and 3.00; half a second per step between the first and last.
    for fact in ("100 steps", "100k tokens", "49.5 s", "2,000 tokens/s", "3.0100 nats", "last 2 records"):
        assert fact in summary
    assert "`validation` the loss is 3.2000" in summary
    assert "1.700 bits per byte: fewer than byte-5-gram, but not fewer than gzip-9 and xz-9." in summary
    table = rows(text)
    assert table["**toy** on `validation`"] == ["1.700", "3.2000", "100"]
    assert table["gzip-9"][0] == "1.650"
    order = [name for name in table if name in ("gzip-9", "xz-9", "byte-5-gram", "**toy** on `validation`")]
    assert order == ["xz-9", "gzip-9", "**toy** on `validation`", "byte-5-gram"]


def test_card_facts_are_listed(make_run, records):
    table = rows(write_report(make_run("toy", records, CARD)).read_text())
    assert table["commit"] == ["0123abcd"]
    assert table["config digest"] == ["c0ffee"]
    assert table["data manifest digest"] == ["beef"]
    assert table["model: parameters"] == ["6,812,345 (6.81M)"]
    assert table["model: flops per token"] == ["41,200,000 (41.2M)"]
    assert table["command"] == ["llm-jax train 'a file.py'"]


def test_what_is_not_known_has_no_row(make_run, records):
    card = {**CARD, "job": None, "source": {"start": None}, "changes": [], "ended": {"how": "finished", "why": ""}}
    text = write_report(make_run("toy", records, card)).read_text()
    assert rows(text)["ended: how"] == ["finished"] and rows(text)["starts"] == ["1"]
    absent = ("job", "source: start", "changes", "ended: why", "peak FLOP/s", "peak flops")
    assert not rows(text).keys() & set(absent) and "not known" not in text


def test_a_known_chip_has_its_peak_and_source(make_run, train_record):
    card = {**CARD, "peak_flops": 989.4e12, "peak_flops_source": "NVIDIA H200 data sheet, dense"}
    text = write_report(make_run("toy", [train_record(1, 2.0, mfu=0.412)], card)).read_text()
    assert rows(text)["peak FLOP/s"] == ["9.894e+14 per device (NVIDIA H200 data sheet, dense)"]
    assert "(MFU 41.2%)" in text


def test_every_picture_shown_exists(make_run, records):
    path = make_run("toy", records, CARD)
    text = write_report(path).read_text()
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert shown == [
        f"plots/{name}.png"
        for name in ("bits_per_byte", "held_out", "loss", "perplexity", "throughput", "learning_rate")
    ]
    assert all((path / picture).stat().st_size > 5_000 for picture in shown)


def test_a_run_with_experts_shows_what_they_did(make_run, train_record):
    told = {"experts/max_load": 1.5, "experts/dropped": 0.0, "experts/entropy": 1.2}
    path = make_run("toy", [train_record(step, 3.0, **told) for step in (1, 2)], CARD)
    assert "![experts](plots/experts.png)\n\nFaint: each layer of experts." in write_report(path).read_text()
    assert (path / "plots" / "experts.png").stat().st_size > 5_000


def test_gradients_have_their_plots_where_a_run_recorded_them(make_run, train_record):
    steps = (1, 2)
    told = [train_record(step, 3.0, gradient_norm=1.0) for step in steps]
    told += [{"kind": "gradient_norms", "step": step, "time": 1.0, "embed/table": 0.5} for step in steps]
    path = make_run("toy", told, CARD)
    text = write_report(path).read_text()
    for name in ("gradient_norm", "parameter_norms"):
        assert f"(plots/{name}.png)" in text and (path / "plots" / f"{name}.png").stat().st_size > 5_000


def test_last_sample_stands_in_a_fence_longer_than_its_own(make_run):
    sample = "def f():\n    '''````'''\n```python\né = 1\n```\n"
    text = write_report(make_run(samples={5: "early", 20: sample})).read_text()
    assert f"## Sample at step 20\n\n`````text\n{sample}`````\n" in text
    assert "early" not in text


def test_resolved_experiment_is_folded_away(make_run):
    path = make_run()
    text = write_report(path).read_text()
    folded = text[text.index("<details>") : text.index("</details>")]
    assert (path / "experiment.txt").read_text() in folded


def test_a_single_record_is_not_called_a_mean(make_run, train_record):
    assert (
        "2.0000 nats per token (the last record)" in write_report(make_run(records=[train_record(1, 2.0)])).read_text()
    )


def test_a_run_that_recorded_nothing_says_so(make_run):
    path = make_run()
    text = write_report(path).read_text()
    assert "has recorded no training step yet" in text
    assert "This run has no card.json." in text
    assert "![" not in text and not (path / "plots").exists()


def test_restarts_are_told(make_run, records):
    path = make_run("toy", records, CARD)
    assert "started" not in write_report(path).read_text()
    RunDirectory(path).write_card(**CARD)
    text = write_report(path).read_text()
    assert "started 2 times" in text and rows(text)["starts"] == ["2"]


def test_writing_again_changes_nothing(make_run, records):
    path = make_run("toy", records, CARD)
    write_report(path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    write_report(path)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_comparison_has_differences_and_final_metrics(make_run, train_record, eval_record, experiments, tmp_path):
    base = experiments["Experiment"]()
    other = dataclasses.replace(base, name="b", steps=200, optimizer=experiments["Lion"]())
    runs = [
        make_run("a", [train_record(1, 2.0), eval_record("test", 1, 2.5, bits_per_byte=1.25)], experiment=base),
        make_run("b", [train_record(1, 1.0)], experiment=other),
    ]
    text = compare(runs, tmp_path / "out" / "ab.md")
    assert (tmp_path / "out" / "ab.md").read_text() == text
    table = rows(text)
    header = ["steps", "optimizer", "optimizer.peak_lr", "optimizer.decay", "steps", "tokens", "train loss"]
    assert table["run"] == [*header, "held-out loss", "bits per byte", "tokens/s", "time"]
    assert table["a"] == ["100", "AdamW", "0.001", "0.1", "1", "1k", "2.0000", "2.5000", "1.2500", "2,000", "0.0 s"]
    assert table["b"] == ["200", "Lion", "0.0001", "-", "1", "1k", "1.0000", "-", "-", "2,000", "0.0 s"]
    assert "![loss of the runs](ab.png)" in text and (tmp_path / "out" / "ab.png").stat().st_size > 5_000
    assert "standard deviation" not in text


def test_seeds_of_one_experiment_have_mean_and_deviation(make_run, train_record, eval_record, experiments, tmp_path):
    base = experiments["Experiment"]()
    paths = [
        make_run(
            f"seed-{seed}",
            [train_record(1, 2.0 + seed), eval_record("test", 1, loss, bits_per_byte=loss / 2)],
            experiment=dataclasses.replace(base, name=f"seed-{seed}", seed=seed),
        )
        for seed, loss in enumerate((1.0, 2.0, 4.0))
    ]
    paths.append(make_run("longer", [train_record(1, 9.0)], experiment=dataclasses.replace(base, steps=7)))
    spread = rows(compare(paths, tmp_path / "seeds.md"))["seed-0, seed-1 and seed-2"]
    # Of 1, 2, 4: mean 7/3, unbiased variance 7/3.
    assert spread == ["3", "3.0000 ± 1.0000", "2.3333 ± 1.5275", "1.1667 ± 0.7638", "2,000 ± 0"]


def test_many_differences_get_a_table_of_their_own(make_run, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Wide:
        a: int
        b: int
        c: int
        d: int
        e: int
        f: int
        g: int
        h: int
        i: int

    runs = [make_run("one", experiment=Wide(*range(9))), make_run("two", experiment=Wide(*range(10, 19)))]
    table = rows(compare(runs, tmp_path / "wide.md"))
    assert table["run"] == ["time"]
    assert table["field"] == ["one", "two"] and table["i"] == ["8", "18"]


def test_runs_of_one_name_are_told_apart_by_the_end_of_their_path(make_run, tmp_path):
    runs = [make_run("first/same"), make_run("second/same"), make_run("other")]
    assert {"first/same", "second/same", "other"} < set(rows(compare(runs, tmp_path / "out.md")))


def test_a_run_named_twice_is_refused(make_run, tmp_path):
    run = make_run("first/same")
    with pytest.raises(ValueError, match="more than once"):
        compare([run, run.parent / ".." / "first" / "same"], tmp_path / "out.md")


def test_a_sweep_over_one_number_has_its_plot(make_run, eval_record, experiments, tmp_path):
    rates = (1e-4, 1e-3, 1e-2)
    base = experiments["Experiment"]()
    paths = [
        make_run(
            f"{rate}-{seed}",
            [eval_record("validation", 1, 2.0 + seed)],
            experiment=dataclasses.replace(base, seed=seed, optimizer=experiments["AdamW"](rate)),
        )
        for rate in rates
        for seed in (0, 1)
    ]
    text = compare(paths, tmp_path / "lr.md")
    assert "(lr_sweep.png)" in text and (tmp_path / "lr_sweep.png").stat().st_size > 5_000
    assert "sweep" not in compare(paths[:2], tmp_path / "seeds.md")


def test_bad_runs_are_refused(make_run, tmp_path):
    with pytest.raises(ValueError, match="0 runs to compare"):
        compare([], tmp_path / "out.md")
    with pytest.raises(ValueError, match="is not a run directory"):
        compare([make_run(), tmp_path / "nowhere"], tmp_path / "out.md")
    with pytest.raises(ValueError, match="is not a run directory"):
        write_report(tmp_path / "nowhere")
    assert not (tmp_path / "out.md").exists()


def test_damaged_files_are_named_in_the_report_and_cost_nothing_else(make_run, train_record):
    path = make_run(records=[train_record(step, 2.0) for step in (1, 2)], samples={3: "a sample"})
    whole = write_report(path).read_text()
    (path / "card.json").write_text("[]")
    (path / "samples" / "step_last.md").write_text("no sample")
    with open(path / "metrics.jsonl", "a") as file:
        file.write('[]\n{"kind": "baseline/gzip-9", "step": 0}\n{"kind": "tra')
    text = write_report(path).read_text()
    assert "## Damaged files" in text and "card.json is damaged" in text
    assert "metrics.jsonl, line 3, is not a record" in text and "metrics.jsonl, line 5, is not a record" in text
    assert "## Damaged files" not in whole
    assert text.split("##")[0] == whole.split("##")[0], "the figures are those of the sound lines"
