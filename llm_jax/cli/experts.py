"""`llm-jax experts`: which experts of a model process which kinds of tokens."""

import dataclasses
from pathlib import Path

from llm_jax.cli.arguments import Arg, parse


@dataclasses.dataclass(frozen=True)
class Experts:
    """Say which experts of a trained model serve which kinds of text: a table, and a picture beside the run."""

    run: Arg[str]
    """Run directory."""
    step: int | None = None
    """Checkpoint to use; the newest if not given."""
    best: bool = False
    """Use the checkpoint with the lowest checkpoint.best_metric instead of the newest."""
    cache_dir: Path = Path(".cache")
    """As for `train`."""


def run(arguments: list[str]) -> None:
    """Prints the table, and draws the picture."""
    options = parse(Experts, arguments)
    from llm_jax.analysis import drawing, expert_table, plots
    from llm_jax.cli.terminal import console
    from llm_jax.core import paths
    from llm_jax.evals.specialisation import specialisation
    from llm_jax.trained_model import TrainedModel

    run = paths.at(options.run)
    trained = TrainedModel.of(run, options.step, options.best)
    found = specialisation(trained.model, trained.params, trained.held_out(options.cache_dir), trained.tokenizer)
    console().print(expert_table.table(found))
    print(f"wrote {drawing.save(plots.specialisation_figure(found), run / 'specialisation.png')}")
