"""Figures show the recorded numbers at the recorded places, and are files with something in them."""

import dataclasses
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from llm_jax.analysis import drawing, plots
from llm_jax.analysis.runs import load_run
from llm_jax.evals.specialisation import Specialisation


@pytest.fixture
def run(make_run, train_record, eval_record):
    records = [train_record(step, 2 + 4 / step, tokens_per_second=1900.0 + step) for step in range(1, 201)]
    records += [eval_record("validation", step, 2.5, bits_per_byte=1.7) for step in (50, 200)]
    records += [{"kind": "baseline/gzip-9", "step": 0, "bits_per_byte": 1.65}]
    return load_run(make_run("run", records))


def lines(figure):
    """Label -> (x, y) of the labelled lines of a figure's only axes."""
    return {line.get_label(): line.get_data() for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def test_loss_is_drawn_against_tokens_with_evaluations_at_the_tokens_of_their_step(run):
    figure = plots.loss_figure([run])
    drawn = lines(figure)
    assert set(drawn) == {"train", "validation"}
    np.testing.assert_array_equal(drawn["train"][0], run.train["tokens"])
    np.testing.assert_array_equal(drawn["validation"], [[50_000, 200_000], [2.5, 2.5]])
    assert figure.axes[0].get_xlabel() == "tokens seen"
    assert "nats" in figure.axes[0].get_ylabel()
    raw = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(raw, run.train["loss"])


def test_perplexity_is_the_exponential_of_the_loss(run):
    drawn = lines(plots.perplexity_figure([run]))
    np.testing.assert_allclose(drawn["validation"], [[50_000, 200_000], np.exp([2.5, 2.5])])
    raw = plots.perplexity_figure([run]).axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(raw, np.exp(run.train["loss"]))


def test_held_out_bits_per_byte_are_drawn_beside_the_other_compressors(run):
    figure = plots.held_out_figure(run)
    drawn = lines(figure)
    np.testing.assert_array_equal(drawn["validation"], [[50_000, 200_000], [1.7, 1.7]])
    assert set(drawn["gzip-9 on test"][1]) == {1.65} and "train" not in drawn, "training has only nats per token"
    assert figure.axes[0].get_ylabel() == "bits per byte"


def test_loss_is_drawn_against_steps_if_a_run_has_no_tokens(run, make_run):
    records = [{"kind": "train", "step": 7, "time": 1.0, "loss": 3.0}]
    figure = plots.loss_figure([run, load_run(make_run("other", records))])
    assert figure.axes[0].get_xlabel() == "step"
    assert set(lines(figure)) == {"run", "other", "evaluated on validation"}
    np.testing.assert_array_equal(lines(figure)["other"], [[7], [3]])


def test_every_run_of_many_looks_different(run):
    runs = [dataclasses.replace(run, path=run.path / str(number)) for number in range(12)]
    figure = plots.loss_figure(runs)
    drawn = [line for line in figure.axes[0].lines if line.get_label()[0].isdigit()]
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 12


def _tick_labels(figure) -> list[tuple[float, str]]:
    """(position, text) of the x ticks that a reader sees."""
    (axes,) = figure.axes
    axes.figure.draw_without_rendering()
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    return [(x, label.get_text()) for x, label in ticks if low <= x <= high]


@pytest.mark.parametrize("figure", [plots.loss_figure, plots.throughput_figure, plots.learning_rate_figure])
@pytest.mark.parametrize("steps", [2, 5, 8, 9])
def test_ticks_of_short_runs_stand_at_the_number_that_they_show(make_run, figure, steps):
    records = [
        {"kind": "train", "step": step, "time": 1.0, "loss": 3.0, "learning_rate": 0.1, "tokens_per_second": 9.0}
        for step in range(1, steps + 1)
    ]
    ticks = _tick_labels(figure([load_run(make_run("short", records))]))
    assert len(ticks) > 1 and all(float(text) == x for x, text in ticks)


def test_runs_of_one_name_have_labels_that_differ(make_run, train_record):
    records = [train_record(step, 3.0, tokens_per_second=step) for step in (1, 2)]
    runs = [load_run(make_run(f"{folder}/tiny", records)) for folder in ("one", "two")]
    for figure in (plots.loss_figure, plots.perplexity_figure, plots.throughput_figure, plots.learning_rate_figure):
        names = [text.get_text() for text in figure(runs).axes[0].get_legend().get_texts()]
        assert len(set(names)) == 2 and "one/tiny" in names[0] and "two/tiny" in names[1]


def test_equal_curves_are_both_visible_and_named(make_run, train_record):
    losses = {"a": [3.0, 2.0], "b": [3.0, 2.5], "c": [3.0, 2.0]}
    runs = [load_run(make_run(n, [train_record(i + 1, x) for i, x in enumerate(v)])) for n, v in losses.items()]
    figure = plots.loss_figure(runs)
    drawn = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in drawn] == ["a", "b", "c (equal to a)"]
    # A dashed line over a full one leaves parts of it visible.
    assert drawn[0].get_linestyle() == "-" and drawn[2].get_linestyle() != "-"
    results = {name: [run] for name, run in zip(losses, runs, strict=True)}
    assert lines(plots.learning_rate_figure(runs)).keys() == {"a", "b (equal to a)", "c (equal to a)"}
    assert not plots.variants_figure(results).axes[0].lines, "without an evaluation there is no held-out curve"


def test_variants_of_which_a_run_was_cut_short_are_drawn_to_where_all_runs_came(make_run, eval_record):
    lengths = {"whole": 4, "cut": 2}
    runs = [
        load_run(make_run(name, [eval_record("validation", 10 * step, 3.0) for step in range(1, 1 + length)]))
        for name, length in lengths.items()
    ]
    (line,) = plots.variants_figure({"variant": runs}).axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [10, 20])


def test_differences_have_a_dot_for_every_seed_and_a_bar_at_the_mean():
    figure = plots.differences_figure({"wide": [-0.1, 0.3], "deep": [0.2], "lost": []}, "base", "nats per token")
    (axes,) = figure.axes
    drawn = [line.get_data() for line in axes.lines if line.get_marker() in ("o", "|")]
    assert [list(x) for x, _ in drawn] == [[-0.1, 0.3], [pytest.approx(0.1)], [0.2], [0.2]]
    assert [list(y) for _, y in drawn] == [[0, 0], [0], [1, 1][:1], [1]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["wide", "deep"]
    assert "base" in axes.get_title(loc="left") and "nats per token" in axes.get_xlabel()


def test_a_sweep_shows_every_run_at_its_value_and_the_means(run):
    rates, losses = [1e-4, 1e-3, 1e-3, 1e-2], [3.0, 2.0, 4.0, np.nan]
    (axes,) = plots.sweep_figure("optimizer.peak_lr", rates, losses, "nats per token").axes
    mean, dots = axes.lines
    np.testing.assert_array_equal(mean.get_data(), [[1e-4, 1e-3], [3, 3]])
    np.testing.assert_array_equal(dots.get_data(), [rates[:3], losses[:3]])
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "optimizer.peak_lr"
    assert [text for _, text in _tick_labels(axes.figure)] == ["0.0001", "0.001"]


def test_throughput_names_the_median_and_starts_at_zero(run):
    figure = plots.throughput_figure([run])
    assert "median 2,000" in lines(figure)
    assert figure.axes[0].get_ylim()[0] == 0


def test_learning_rate_is_drawn_against_steps(run):
    (line,) = plots.learning_rate_figure([run]).axes[0].lines
    np.testing.assert_array_equal(line.get_data(), [run.train["step"], run.train["learning_rate"]])


def test_experts_are_drawn_layer_by_layer_and_in_the_mean(make_run, train_record):
    of_layers = {f"experts/max_load/stack/segment_0/block_0/{layer}": 2.0 + layer for layer in (0, 1)}
    means = {"experts/max_load": 2.5, "experts/dropped": 0.1, "experts/entropy": 1.5}
    run = load_run(make_run("run", [train_record(step, 3.0, **means, **of_layers) for step in (1, 2, 3)]))
    load, dropped, entropy = plots.experts_figure([run]).axes
    drawn = [(line.get_xdata().tolist(), set(line.get_ydata())) for line in load.lines]
    assert drawn == [([1, 2, 3], {2.0}), ([1, 2, 3], {3.0}), ([1, 2, 3], {2.5})]
    assert [len(axes.lines) for axes in (dropped, entropy)] == [1, 1]
    assert load.get_ylim()[0] == 1 and dropped.get_ylim()[0] == 0


def test_a_map_of_specialisation_has_a_panel_for_every_layer(tmp_path):
    counts = {"stack/segment_0/block_0": np.ones((2, 5, 4)), "stack/segment_1/block_1": np.eye(5, 4)[None]}
    figure = plots.specialisation_figure(Specialisation(counts))
    shown = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes if axes.images and axes.get_title()}
    assert list(shown) == [
        "segment_0/block_0 0: 0.000 bits",
        "segment_0/block_0 1: 0.000 bits",
        "segment_1/block_1 0: 2.000 bits",
    ]
    np.testing.assert_array_equal(shown["segment_1/block_1 0: 2.000 bits"], np.eye(5, 4))
    assert drawing.save(figure, tmp_path / "map.png").stat().st_size > 5_000


def test_bits_per_byte_bars_are_sorted_with_the_best_on_top(run):
    axes = plots.bits_per_byte_figure(run).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gzip-9", "run (validation)"]
    assert [bar.get_width() for bar in axes.patches] == [1.65, 1.7]
    assert axes.yaxis_inverted()
    assert {text.get_text() for text in axes.texts} == {"1.650", "1.700"}


def test_moving_mean_is_a_centred_window_that_passes_over_what_is_not_finite():
    line = np.arange(100.0)
    np.testing.assert_allclose(drawing.moving_mean(line)[1:-1], line[1:-1])
    values = np.where(np.arange(100) == 50, np.nan, 3.0)
    np.testing.assert_allclose(drawing.moving_mean(values), np.full(100, 3.0))
    assert np.isnan(drawing.moving_mean(np.array([np.inf]))).all()
    noise = np.random.default_rng(0).normal(size=1000)
    assert drawing.moving_mean(noise).std() < 0.5 * noise.std()


def test_quantities_have_three_digits_and_a_unit():
    found = [drawing.quantity(value) for value in (0, 999, 999.6, 1234, 999_950, 6_812_345, 1.5e11, 2e12)]
    assert found == ["0", "999", "1k", "1.23k", "1M", "6.81M", "150B", "2T"]


@pytest.mark.parametrize("losses", [[3.0], [3.0, 3.0], [3.0, float("nan"), 2.0], [9.0, 1e-4, 0.0], [float("nan")]])
def test_odd_losses_can_be_drawn(make_run, train_record, tmp_path, losses):
    run = load_run(make_run("odd", [train_record(step, loss) for step, loss in enumerate(losses, 1)]))
    assert drawing.save(plots.loss_figure([run]), tmp_path / "loss.png").stat().st_size > 5_000


def test_pictures_have_content_and_are_reproducible(run, tmp_path):
    figures = {
        "loss": plots.loss_figure,
        "throughput": plots.throughput_figure,
        "learning_rate": plots.learning_rate_figure,
    }
    for name, figure in figures.items():
        picture = drawing.save(figure([run]), tmp_path / "new folder" / f"{name}.png")
        pixels = matplotlib.image.imread(picture)
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels[..., :3] @ [1, 300, 90_000])) > 20
        again = drawing.save(figure([run]), tmp_path / "again.png")
        assert picture.read_bytes() == again.read_bytes()


def test_pyplot_and_its_global_state_are_not_loaded():
    code = "import sys, llm_jax.analysis.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
