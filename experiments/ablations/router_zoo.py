"""Every router on the same text at the same active FLOPs, and what happens without a balance loss.

Paper:    none compares them all; each router's paper stands in its config's docstring.
Claim:    learned routers beat random ones, and the dense model of the same active FLOPs; without a balance loss a few
          experts get far more tokens than others (Shazeer et al. 2017, arXiv:1701.06538, section 4); the correction
          bias balances as well as a loss does (Wang et al. 2024, arXiv:2408.15664).
Command:  llm-jax ablate experiments/ablations/router_zoo.py
Hardware: two CPU cores.
Measured: experiments/README.md. With three seeds no difference between losses is significant after Holm's correction,
          neither to the dense model nor to the random router: the first claim is not shown. Without a balance loss the
          busiest expert gets over three times the mean, and a capacity then drops 38% of all choices. The bias balances
          as well as the loss, after 400 steps.

Every second layer has eight experts of half the dense ffn's width, and a token visits two. Expert choice and Sinkhorn's
assignment are not causal: expert choice sees the tokens that it predicts, so that its loss is not comparable; the
assignment is global in training only. Soft mixtures mix whole sequences and are not part of this causal comparison.
"""

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from llm_jax.analysis import ablation, drawing, plots
from llm_jax.analysis.ablation import Results
from llm_jax.analysis.runs import Run
from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.core.run_directory import RunDirectory
from llm_jax.data import CorpusConfig, DataConfig, HashSplit, StandardLibraryConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.evals.specialisation import Specialisation, specialisation
from llm_jax.experiment import Experiment
from llm_jax.layers.ffn.balance import BiasUpdate, ImportanceLoss, LoadLoss, SequenceLoss, ZLoss
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.expert_choice import ExpertChoiceConfig
from llm_jax.layers.ffn.routers.fixed import HashConfig, RandomConfig
from llm_jax.layers.ffn.routers.router_scores import Noisy
from llm_jax.layers.ffn.routers.sinkhorn import SinkhornConfig
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.families.llama import llama
from llm_jax.optim import AdamWConfig, Cosine
from llm_jax.tokenizers import TrainSentencePieceConfig
from llm_jax.trained_model import TrainedModel
from llm_jax.variants import update_seconds

VOCAB_SIZE, LENGTH, ROWS = 1024, 128, 16
WIDTH, HIDDEN = 128, 352
EXPERTS, TOP = 8, 2
EVEN = (LoadLoss(0.01), ZLoss(0.001))

LAYERS = {
    "softmax": (SoftmaxConfig(TOP), Dropless(), EVEN),
    "softmax-unbalanced": (SoftmaxConfig(TOP), Dropless(), ()),
    "softmax-unnormalized": (SoftmaxConfig(TOP, normalized=False), Dropless(), EVEN),
    "softmax-capacity": (SoftmaxConfig(TOP), Capacity(1.25), EVEN),
    "softmax-capacity-unbalanced": (SoftmaxConfig(TOP), Capacity(1.25), ()),
    "noisy": (SoftmaxConfig(TOP, noise=Noisy()), Dropless(), (ImportanceLoss(0.1),)),
    "sigmoid-bias": (SigmoidConfig(TOP), Dropless(), (BiasUpdate(0.001), SequenceLoss(0.0001))),
    "sinkhorn": (SinkhornConfig(TOP, allow_future=True), Dropless(), ()),
    "expert-choice": (ExpertChoiceConfig(TOP, allow_future=True), Dropless(), ()),
    "hash": (HashConfig(TOP), Dropless(), ()),
    "random": (RandomConfig(TOP), Dropless(), ()),
}
"""Router, dispatch and balance."""

SHOWN = "softmax"
"""The variant of which a picture shows which experts serve which classes of tokens."""


def experiment() -> Experiment:
    """The dense model."""
    return Experiment(
        name="router_zoo",
        steps=1000,
        tokenizer=TrainSentencePieceConfig(VOCAB_SIZE),
        data=DataConfig(
            CorpusConfig(StandardLibraryConfig(), split=HashSplit(validation=0.03)),
            sequence_length=LENGTH,
            batch_size=ROWS,
        ),
        model=llama(4, 4, WIDTH, hidden=HIDDEN, vocab_size=VOCAB_SIZE, max_length=LENGTH),
        optimizer=AdamWConfig(peak_lr=3e-3, schedule=Cosine(warmup_steps=50, final_fraction=0.1)),
        checkpoint=CheckpointConfig(every=1000),
        evaluations=(PerplexityConfig(every=250, max_bytes=200_000),),
    )


def variants() -> dict[str, Experiment]:
    base = experiment()
    dense = base.model.segments[0].blocks[0].ffn
    expert = dataclasses.replace(dense, hidden=HIDDEN // TOP)
    found = {"dense": base}
    for name, layer in LAYERS.items():
        model = with_experts(base.model, MoEConfig(EXPERTS, expert, *layer), range(1, base.model.depth, 2))
        found[name] = dataclasses.replace(base, model=model)
    return found


def report(results: Results, folder: Path) -> str:
    """Table of losses, loads, specialisation and the time of an update; loads over training; who serves what."""
    seconds = update_seconds({name: RunDirectory(runs[0].path).experiment() for name, runs in results.items()})
    found = {run.path: _specialisation(run) for runs in results.values() for run in runs}
    measures = {
        "max load / mean": (ablation.trained_tail("experts/max_load"), ".2f"),
        "load entropy": (ablation.trained_tail("experts/load_entropy"), ".2f"),
        "score entropy": (ablation.trained_tail("experts/entropy"), ".2f"),
        "dropped": (ablation.trained_tail("experts/dropped"), ".1%"),
        "class, bits": (lambda run: found[run.path] and found[run.path].bits, ".3f"),
    }
    times = {name: f"{1000 * value:.1f}" for name, value in seconds.items()}
    text = (
        f"{ablation.table(results, measures, {'update, ms': times})}\n\n"
        f"Loads and entropies (nats; an even load has {np.log(EXPERTS):.2f}) are means of the last tenth of training. "
        "Class: how much the expert of a held-out token tells of its class (whitespace, punctuation, digit, a word's "
        "start or continuation), mean of layers. The time of an update is a median of alternating ones, measured when "
        "the table was written.\n\n"
        "![held-out loss at equal active FLOPs](loss.png)\n![load of the busiest expert](load.png)"
    )
    drawing.save(_losses(results), folder / "loss.png")
    drawing.save(_loads(results), folder / "load.png")
    if SHOWN in results:
        first = found[results[SHOWN][0].path]
        drawing.save(plots.specialisation_figure(first), folder / "specialisation.png")
        text += f"\n![which experts of {SHOWN}, seed 0, serve which classes of tokens](specialisation.png)"
    return text


def _specialisation(run: Run) -> Specialisation | None:
    """On the held-out text of the run; None for a model without experts."""
    trained = TrainedModel.of(RunDirectory(run.path))
    if not trained.model.config.experts:
        return None
    return specialisation(trained.model, trained.params, trained.held_out(Path(".cache")), trained.tokenizer)


def _losses(results: Results) -> plt.Figure:
    """Of each variant the last loss of every seed, their mean and its standard deviation."""
    figure = plt.Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    found = {name: ablation.values(runs, ablation.held_out_loss) for name, runs in results.items()}
    for place, losses in enumerate(found.values()):
        deviation = np.std(losses, ddof=1) if len(losses) > 1 else 0
        axes.errorbar(np.mean(losses), place, xerr=deviation, marker="o", capsize=4, color="#0072B2")
        axes.plot(losses, [place] * len(losses), ".", color="#BDBDBD", zorder=0)
    axes.axvline(np.mean(next(iter(found.values()))), color="#BDBDBD", linewidth=1, zorder=0)
    axes.set_yticks(range(len(found)), found)
    axes.invert_yaxis()
    axes.set(xlabel="held-out loss (nats per token)")
    axes.set_title("loss after the last update, mean ± sd; line: the first", loc="left", fontweight="bold")
    axes.grid(alpha=0.3, axis="x")
    return figure


def _loads(results: Results) -> plt.Figure:
    figure = plt.Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, runs) in enumerate(results.items()):
        if "experts/max_load" in runs[0].train:
            mean = np.mean([drawing.moving_mean(run.train["experts/max_load"]) for run in runs], axis=0)
            style = {"color": plt.get_cmap("tab20")(index % 20), "linestyle": ("-", "--")[index % 2]}
            axes.plot(runs[0].train["step"], mean, label=name, **style)
    axes.set(xlabel="step", ylabel="busiest expert / mean")
    axes.set_title("load of the busiest expert", loc="left", fontweight="bold")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure
