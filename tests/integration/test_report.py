import shutil

from tests.helpers.command_line import llm_jax


def test_the_report_of_one_run_lies_in_it(finished, tmp_path):
    run = shutil.copytree(finished.path, tmp_path / "copy")
    (run / "report.md").unlink()
    outcome = llm_jax("report", run)
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == str(run / "report.md")
    text = (run / "report.md").read_text()
    assert "Trained for 12 steps" in text and "bits per byte" in text
    assert all((run / "plots" / name).stat().st_size > 1000 for name in ("loss.png", "throughput.png"))


def test_several_runs_come_in_one_table_and_plot(finished, tmp_path):
    runs = [shutil.copytree(finished.path, tmp_path / name) for name in ("first", "second")]
    experiment = runs[1] / "experiment.txt"
    experiment.write_text(experiment.read_text().replace("optimizer.peak_lr = 0.01", "optimizer.peak_lr = 0.02"))
    (runs[1] / "card.json").unlink()  # it names the experiment by its digest, and this is another one now
    outcome = llm_jax("report", *runs, "--output", tmp_path / "both.md")
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "both.md").read_text()
    assert text.strip() == outcome.out.strip()
    assert "| first |" in text and "| second |" in text
    assert "optimizer.peak_lr" in text and "optimizer.b1" not in text, "columns are the fields that differ"
    assert (tmp_path / "both.png").stat().st_size > 1000


def test_what_is_no_run_is_named(finished, tmp_path):
    for words in ((tmp_path / "absent",), (finished.path, tmp_path / "absent")):
        outcome = llm_jax("report", *words)
        assert outcome.code != 0 and f"{tmp_path / 'absent'} is not a run directory" in outcome.said
    assert "at least one run directory" in llm_jax("report").said
