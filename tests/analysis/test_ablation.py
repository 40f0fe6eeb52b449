"""Variants side by side: the numbers of a table are those of the runs' records."""

import math

import numpy as np
import pytest
import scipy.stats

from llm_jax.analysis import ablation
from llm_jax.analysis.runs import load_run

LOSSES = {"base": (2.0, 2.1, 2.3), "better": (1.5, 1.6, 1.4), "wild": (1.0, 3.0, 2.0)}


@pytest.fixture
def results(make_run, train_record, eval_record, experiments):
    def run(name, seed, loss):
        records = [train_record(step, loss + 3 - step / 10, spare=step) for step in range(1, 21)]
        records += [eval_record("validation", step, loss + 1 - step / 20) for step in (10, 20)]
        return load_run(make_run(f"{name}-{seed}", records, experiment=experiments["Experiment"](name=name, seed=seed)))

    return {name: [run(name, seed, loss) for seed, loss in enumerate(found)] for name, found in LOSSES.items()}


def _cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_means_deviations_and_distances_are_those_of_the_losses(results):
    measures = {"tokens/s": (ablation.tokens_per_second, ",.0f"), "tail": (ablation.trained_tail("spare"), ".1f")}
    cells = _cells(ablation.table(results, measures, {"length": {name: f"{len(name)}" for name in results}}))
    base = np.array(LOSSES["base"])
    assert cells["variant"] == ["seeds", "held-out loss", "to the first", "tokens/s", "tail", "length"]
    for name, found in LOSSES.items():
        seeds, loss, away, speed, tail, length = cells[name]
        assert seeds == "3" and length == f"{len(name)}" and speed == "2,000 ± 0" and tail == "19.5 ± 0.0"
        assert [float(x) for x in loss.split(" ± ")] == pytest.approx([np.mean(found), np.std(found, ddof=1)], abs=6e-5)
        if name == "base":
            assert away == "-"
            continue
        difference, error = map(float, away.split(" ± "))
        assert difference == pytest.approx(np.mean(found) - np.mean(base), abs=6e-5)
        # Welch's statistic, by another hand.
        statistic = scipy.stats.ttest_ind(found, base, equal_var=False).statistic
        assert difference / error == pytest.approx(statistic, rel=1e-2)


def test_one_seed_has_no_error_bar(results):
    cells = _cells(ablation.table({name: runs[:1] for name, runs in results.items()}))
    assert cells["base"][1] == "2.0000" and cells["better"][2] == "-0.5000 ± nan"


def test_steps_to_a_loss_lie_on_the_line_between_evaluations(results):
    (run, *_) = results["base"]  # 2.5 after 10 updates, 2.0 after 20
    assert ablation.steps_to(2.5)(run) == 10 and ablation.steps_to(9.0)(run) == 10
    assert ablation.steps_to(2.2)(run) == pytest.approx(16)
    assert ablation.steps_to(1.99)(run) is None
    assert ablation.steps_to(2.2)(load_run(run.path)) == ablation.steps_to(2.2)(run)


def test_a_report_is_a_table_and_curves_unless_the_file_has_its_own(results, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    text = ablation.write(results, folder, None)
    assert text.startswith("| variant |") and (folder / "loss.png").stat().st_size > 1000
    assert text in (folder / "report.md").read_text()
    assert ablation.write(results, folder, lambda results, folder: f"{len(results)} of {folder.name}") == "3 of mine"
    assert "3 of mine" in (folder / "report.md").read_text()


def test_differences_are_those_of_equal_seeds(results):
    shuffled = results | {"better": results["better"][::-1], "wild": results["wild"][1:]}
    found = ablation.differences(shuffled, ablation.held_out_loss)
    assert found == {"better": pytest.approx([-0.9, -0.5, -0.5]), "wild": pytest.approx([0.9, -0.3])}


def test_the_picture_of_differences_is_part_of_the_report(results, tmp_path):
    text = ablation.write(results, tmp_path, None)
    assert "(differences.png)" in text and (tmp_path / "differences.png").stat().st_size > 1000
    assert "sweep" not in text


def test_a_mean_of_some_seeds_says_of_how_many(results):
    cells = _cells(ablation.table(results, {"below": (ablation.steps_to(2.05), ",.0f")}))
    # Of 2.0, 2.1 and 2.3 one is below after its last update; of 1.5, 1.6 and 1.4 all are.
    assert cells["base"][-1] == "19 (1 of 3)" and "of" not in cells["better"][-1]


def test_what_a_run_did_not_record_is_a_dash(results):
    cells = _cells(ablation.table(results, {"absent": (ablation.trained_tail("absent"), ".1f")}))
    assert cells["wild"][-1] == "-"
    assert math.isclose(np.mean(ablation.values(results["wild"], ablation.held_out_loss)), 2.0)
