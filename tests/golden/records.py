"""The golden record of an experiment: its flat text, number of parameters and training FLOPs per token."""

from pathlib import Path

from llm_jax.core import config_text
from llm_jax.experiment import load_experiment
from llm_jax.models import count

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
GOLDEN = Path(__file__).parent / "experiments"
COMMAND = "python tests/golden/regenerate.py"


def experiment_files() -> list[Path]:
    """Files that define an experiment, relative to experiments/."""
    files = (path.relative_to(EXPERIMENTS) for path in sorted(EXPERIMENTS.rglob("*.py")))
    return [file for file in files if "def experiment(" in (EXPERIMENTS / file).read_text(encoding="utf-8")]


def golden_file(file: Path) -> Path:
    """Where the golden record of an experiment file lies."""
    return GOLDEN / file.with_suffix(".txt")


def record(file: Path) -> str:
    """What the golden record of an experiment file should be."""
    experiment = load_experiment(EXPERIMENTS / file)
    flops = count.training_flops(experiment.model, experiment.data.sequence_length)
    return (
        f"{config_text.to_text(experiment)}\n"
        f"parameters: {count.parameters(experiment.model):,}\n"
        f"training FLOPs per token: {flops:,.0f}\n"
    )
