"""Figures of the first updates of a tiny run, on the CPU in float32. Its rows do not depend on numpy's generators."""

import json
import tempfile
from pathlib import Path

import jax

from llm_jax.assemble import assemble
from llm_jax.core.metrics import means
from llm_jax.data import CorpusConfig, DataConfig, PackedConfig, RangeSplit, TextFilesConfig
from llm_jax.experiment import Experiment
from llm_jax.models.families.llama import llama
from llm_jax.optim import AdamWConfig, Cosine
from llm_jax.tokenizers import ByteTokenizerConfig

GOLDEN = Path(__file__).parent / "first_step.json"
UPDATES = 3
TEXT = "The quick brown fox jumps over the lazy dog. " * 20


def measure() -> list[dict[str, float]]:
    """Loss and gradient norm of each of the first updates."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(TEXT)
        parts = assemble(_experiment(text), Path(folder))
        state, rows = parts.initial_state(), parts.dataset.train_iterator()
        found = []
        for _ in range(UPDATES):
            state, report = parts.programs.step(state, parts.place(next(rows)))
            squares = [float(norm) ** 2 for norm in jax.tree.leaves(report.gradient_norms)]
            found.append({"loss": means(report.metrics)["loss"], "gradient_norm": sum(squares) ** 0.5})
        rows.close()
    return found


def write(figures: list[dict[str, float]]) -> None:
    """Makes `figures` the golden ones."""
    GOLDEN.write_text(json.dumps(figures, indent=2) + "\n")


def read() -> list[dict[str, float]]:
    """The golden figures."""
    return json.loads(GOLDEN.read_text())


def _experiment(text: Path) -> Experiment:
    corpus = CorpusConfig(TextFilesConfig((str(text),)), split=RangeSplit(0.1), packing=PackedConfig(shuffle=False))
    return Experiment(
        name="first_step",
        steps=10,
        tokenizer=ByteTokenizerConfig(),
        data=DataConfig(corpus, sequence_length=32, batch_size=4, read_ahead=0),
        model=llama(layers=2, heads=4, width=32, hidden=48, kv_heads=2, vocab_size=259, max_length=32),
        optimizer=AdamWConfig(peak_lr=1e-2, schedule=Cosine(warmup_steps=1)),
    )
