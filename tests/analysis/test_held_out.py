"""What runs are judged by on held-out text: means over the sets of a mixture, and a unit that tokenizers share."""

import dataclasses
import itertools

import numpy as np
import pytest

from llm_jax.analysis import ablation, plots
from llm_jax.analysis.ablation import held_out_loss
from llm_jax.analysis.report import compare, write_report
from llm_jax.analysis.runs import BITS, NATS, described, held_out_set, load_run, load_runs, loss_unit
from llm_jax.data import DataConfig, MixtureConfig, ModularAdditionConfig, WeightedSource
from llm_jax.tokenizers import CharacterTokenizerConfig, TokenizerConfig, TrainSentencePieceConfig


@dataclasses.dataclass(frozen=True)
class Experiment:
    name: str
    seed: int = 0
    tokenizer: TokenizerConfig | None = None
    data: DataConfig | None = None


@pytest.fixture
def make_mixed(make_run, train_record, eval_record):
    """make_mixed(name, weights, losses) -> a run of a mixture with these weights of its sources a, b, ..., evaluated on
    each with these losses after step 10, and with 1 more after step 5."""

    def make(name, weights, losses, part="validation", changes=()):
        sources = tuple(
            WeightedSource(source, ModularAdditionConfig(), weight, changes=later)
            for source, weight, later in itertools.zip_longest("abc"[: len(weights)], weights, changes, fillvalue=())
        )
        records = [
            eval_record(f"{part}/{source}", step, loss + (10 - step) / 5, bits_per_byte=loss / 2)
            for source, loss in zip("abc", losses, strict=False)
            for step in (5, 10)
        ]
        data = DataConfig(MixtureConfig(sources), sequence_length=40, batch_size=2)
        return make_run(name, [train_record(5, 9.0), *records], experiment=Experiment(name, data=data))

    return make


@pytest.fixture
def tokenized(make_run, train_record, eval_record):
    """tokenized(name, digest, loss, bits) -> a run whose card names its tokenizer."""

    def make(name, digest, loss, bits, seed=0):
        records = [train_record(step, loss + 1) for step in (5, 10)]
        records += [eval_record("validation", step, loss, bits_per_byte=bits + 10 - step) for step in (5, 10)]
        card = {"data": {"tokenizer": digest}}
        return make_run(f"{name}-{seed}", records, card, experiment=Experiment(f"{name}-{seed}", seed))

    return make


@pytest.mark.parametrize("part", ["validation", "test"])
def test_held_out_loss_of_a_mixture_is_the_mean_by_the_weights_of_its_sources(make_mixed, part):
    run = load_run(make_mixed("run", (3.0, 1.0), (2.0, 4.0), part))
    assert held_out_set([run]) == part
    np.testing.assert_allclose(run.evals[part]["loss"], [(3 * 3 + 5) / 4, (3 * 2 + 4) / 4])
    np.testing.assert_allclose(run.evals[part]["bits_per_byte"], 1.25)
    np.testing.assert_array_equal(run.evals[part]["step"], [5, 10])
    assert held_out_loss(run) == 2.5
    assert described([run], part) == f"`{part}` (the mean, 0.75 of `{part}/a`, 0.25 of `{part}/b`)"


def test_the_mean_goes_by_the_weights_at_the_end_and_leaves_out_a_source_that_is_only_evaluated(make_mixed):
    run = load_run(make_mixed("run", (1.0, 1.0, 0.0), (2.0, 4.0, 9.0), changes=(((3, 3.0),),)))
    assert held_out_loss(run) == 2.5 and set(run.evals) == {"validation", *(f"validation/{name}" for name in "abc")}


def test_a_mixture_evaluated_on_some_of_its_sources_has_no_held_out_loss(make_mixed):
    run = load_run(make_mixed("run", (3.0, 1.0), (2.0,)))
    assert held_out_set([run]) is None and held_out_loss(run) is None


def test_mixtures_are_compared_over_the_same_sets_by_the_same_weights(make_mixed, tmp_path):
    paths = [
        make_mixed("one", (3.0, 1.0), (2.0, 4.0)),
        make_mixed("two", (1.0, 3.0), (2.0, 4.0)),
        make_mixed("three", (1.0, 1.0, 1.0), (2.0, 4.0, 9.0)),
    ]
    runs = [load_run(path) for path in paths]
    assert [held_out_loss(run) for run in runs] == [2.5, 3.5, 5.0]
    assert [held_out_loss(run) for run in load_runs(paths)] == [2.5, 2.5, 2.5]
    assert [held_out_loss(run) for run in load_runs(paths[1:])] == [3.5, 3.5]
    text = compare(paths, tmp_path / "report.md")
    assert "held out is the set `validation` (the mean, 0.75 of `validation/a`, 0.25 of `validation/b`)" in text
    results = {run.name: [run] for run in runs}
    assert ablation.table(results).count("2.5000") == 3
    assert "the mean, 0.333 of" in write_report(paths[2]).read_text()


def test_losses_are_in_bits_per_byte_where_tokenizers_differ(tokenized, make_run):
    one, same, other = (load_run(tokenized(name, digest, 2, 1)) for name, digest in ("ab", "cb", "dx"))
    assert loss_unit([one, same]) == NATS and loss_unit([one, same, other]) == BITS and loss_unit([other]) == NATS
    # Without cards the experiments tell.
    named = {"plain": CharacterTokenizerConfig(), "pieces": TrainSentencePieceConfig(300)}
    plain, pieces = (load_run(make_run(name, experiment=Experiment(name, tokenizer=t))) for name, t in named.items())
    assert loss_unit([plain, pieces]) == BITS and loss_unit([plain, plain]) == NATS


def test_a_comparison_over_tokenizers_shows_no_loss_per_token(tokenized, tmp_path):
    # Larger pieces: more nats for each of them, fewer bits for the text.
    found = ("small", "aa", 1.5, 2.1), ("large", "bb", 3.0, 1.9), ("large", "bb", 3.1, 1.8, 1)
    paths = [tokenized(*one) for one in found]
    text = compare(paths, tmp_path / "report.md")
    assert "different tokenizers" in text and "train loss" not in text and "held-out loss" not in text
    assert "1.8500 ± 0.0707" in text and "3.0" not in text
    same = compare(paths[1:], tmp_path / "same.md")
    assert "different tokenizers" not in same and "held-out loss" in same


def test_an_ablation_of_tokenizers_is_in_bits_per_byte(tokenized, tmp_path):
    found = {"small": ("aa", 1.5, 2.1), "large": ("bb", 3.0, 1.9)}
    results = {
        name: [load_run(tokenized(name, digest, loss, bits + seed / 100, seed)) for seed in (0, 1)]
        for name, (digest, loss, bits) in found.items()
    }
    table = ablation.table(results)
    assert "held-out bits per byte" in table and "-0.2000" in table and "+1.5" not in table
    folder = tmp_path / "ablation"
    folder.mkdir()
    assert ablation.write(results, folder, None).startswith(table.splitlines()[0][:40])
    figure = plots.variants_figure(results)
    assert figure.axes[0].get_ylabel() == "loss (bits per byte)"
    (small, large) = (line.get_ydata() for line in figure.axes[0].lines)
    np.testing.assert_allclose([small, large], [[7.105, 2.105], [6.905, 1.905]])


def test_the_loss_figure_over_tokenizers_draws_held_out_bits_alone(tokenized):
    runs = [load_run(tokenized(*one)) for one in (("small", "aa", 1.5, 2.1), ("large", "bb", 3.0, 1.9))]
    (axes,) = plots.loss_figure(runs).axes
    assert axes.get_ylabel() == "loss (bits per byte)" and axes.get_xlabel() == "step"
    drawn = [line.get_ydata().tolist() for line in axes.lines if len(line.get_ydata())]
    np.testing.assert_allclose(drawn, [[7.1, 2.1], [6.9, 1.9]])
    assert {text.get_text() for text in axes.get_legend().get_texts()} >= {"small-0", "large-0"}
