"""Switch Transformer's figure 1 in small: more experts learn more from the same text at the same FLOPs per token.

Paper:    Fedus et al. 2021, arXiv:2101.03961, figure 1 and section 3.1. Every other feed-forward layer is a layer of
          experts, of which a token visits one; capacity 1.25, balance loss 0.01, jitter 0.01.
Claim:    held-out loss after as many updates falls with every doubling of the experts; models with experts come to the
          dense model's last loss in fewer updates (the paper: 7.5 times fewer with 64 experts of T5-Base's size).
          Here the model is a decoder, of a million parameters, and sees two million tokens. Its initial values are
          LLaMA's; the variance of 0.1 / fan-in of section 2.4 is in `models/families/switch.py` alone.
Command:  llm-jax ablate experiments/reproductions/switch_sample_efficiency.py
Hardware: two CPU cores.
Measured: experiments/README.md. Not reproduced at this size: no number of experts differs from the dense model by more
          than chance, and with more experts more tokens are dropped, as a row of 128 has few for each.
"""

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from llm_jax.analysis import ablation, drawing, plots
from llm_jax.analysis.ablation import Results
from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.core.run_directory import RunDirectory
from llm_jax.data import CorpusConfig, DataConfig, HashSplit, StandardLibraryConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import Experiment
from llm_jax.layers.ffn.balance import LoadLoss
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.router_scores import Jitter
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models import count
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.families.llama import llama
from llm_jax.optim import AdamWConfig, Cosine
from llm_jax.tokenizers import TrainSentencePieceConfig
from llm_jax.variants import update_seconds

VOCAB_SIZE = 1024
LENGTH = 128
EXPERTS = (2, 4, 8, 16, 32)


def experiment() -> Experiment:
    """The dense model."""
    return Experiment(
        name="switch_sample_efficiency",
        steps=1000,
        tokenizer=TrainSentencePieceConfig(VOCAB_SIZE),
        data=DataConfig(
            CorpusConfig(StandardLibraryConfig(), split=HashSplit(validation=0.03)),
            sequence_length=LENGTH,
            batch_size=16,
        ),
        model=llama(layers=4, heads=4, width=128, hidden=352, vocab_size=VOCAB_SIZE, max_length=LENGTH),
        optimizer=AdamWConfig(peak_lr=3e-3, schedule=Cosine(warmup_steps=50, final_fraction=0.1)),
        checkpoint=CheckpointConfig(every=1000),
        evaluations=(PerplexityConfig(every=100, max_bytes=200_000),),
    )


def mixed(base: Experiment, experts: int) -> Experiment:
    """Every second feed-forward layer is as many of its kind."""
    dense = base.model.segments[0].blocks[0].ffn
    router = SoftmaxConfig(top=1, normalized=False, noise=Jitter(0.01))
    layer = MoEConfig(experts, dense, router, Capacity(1.25), (LoadLoss(0.01),))
    return dataclasses.replace(base, model=with_experts(base.model, layer, range(1, base.model.depth, 2)))


def variants() -> dict[str, Experiment]:
    base = experiment()
    return {"dense": base} | {f"{number}-experts": mixed(base, number) for number in EXPERTS}


def report(results: Results, folder: Path) -> str:
    """Table of losses and of the updates to the dense model's last loss; losses against updates and parameters."""
    baseline, *_ = results.values()
    target = float(np.mean(ablation.values(baseline, ablation.held_out_loss)))
    experiments = {name: RunDirectory(runs[0].path).experiment() for name, runs in results.items()}
    times = {name: f"{1000 * value:.1f}" for name, value in update_seconds(experiments).items()}
    sizes = {name: count.parameters(one.model) / 1e6 for name, one in experiments.items()}
    facts = {"parameters, millions": {name: f"{size:.1f}" for name, size in sizes.items()}, "update, ms": times}
    measures = {
        "updates to the first's loss": (ablation.steps_to(target), ",.0f"),
        "dropped": (ablation.trained_tail("experts/dropped"), ".1%"),
    }
    drawing.save(plots.variants_figure(results, "held-out loss at equal FLOPs per token"), folder / "loss.png")
    drawing.save(_by_size(results, sizes), folder / "size.png")
    return (
        f"{ablation.table(results, measures, facts)}\n\n"
        "The time of an update is a median of alternating ones, measured when the table was written.\n\n"
        "![held-out loss against updates](loss.png)\n"
        "![held-out loss against parameters](size.png)"
    )


def _by_size(results: Results, size_of: dict[str, float]) -> plt.Figure:
    figure = plt.Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    sizes = [size_of[name] for name in results]
    losses = [ablation.values(runs, ablation.held_out_loss) for runs in results.values()]
    deviations = [np.std(found, ddof=1) if len(found) > 1 else 0 for found in losses]
    axes.errorbar(sizes, [np.mean(found) for found in losses], deviations, marker="o", capsize=4, color="#0072B2")
    for size, name, found in zip(sizes, results, losses, strict=True):
        axes.annotate(name, (size, np.mean(found)), textcoords="offset points", xytext=(6, 6), fontsize=9)
    axes.margins(x=0.12)
    axes.set(xscale="log", xlabel="parameters, millions", ylabel="held-out loss (nats per token)")
    axes.set_title("loss after the last update, mean ± sd", loc="left", fontweight="bold")
    axes.grid(alpha=0.3)
    return figure
