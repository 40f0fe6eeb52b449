"""A whole run that takes a second: a corpus of made-up sentences and an experiment in which every state matters.

Dropout, accumulation, a moving average and shuffled data are all on, so that a resumed run that forgets any part of
what it carries from step to step ends elsewhere.
"""

import dataclasses
import random
from pathlib import Path
from typing import Any

from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.data import CorpusConfig, DataConfig, HashSplit, TextFilesConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import Experiment
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.optim import AdamWConfig, Cosine
from llm_jax.tokenizers import ByteTokenizerConfig
from llm_jax.train.step import StepConfig

WORDS = ("red", "green", "fox", "dog", "runs", "sleeps", "under", "over", "the", "a")

FILE = '''"""A tiny experiment, for tests."""

from pathlib import Path

from tests.helpers import tiny_run


def experiment():
    return tiny_run.experiment(Path(__file__).parent)
'''


def write_corpus(folder: Path, documents: int = 24, words: int = 30) -> Path:
    """Makes `folder`/corpus with text files of random sentences, the same at every call."""
    draw = random.Random(0)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for number in range(documents):
        (corpus / f"{number:02}.txt").write_text(" ".join(draw.choice(WORDS) for _ in range(words)))
    return corpus


def write_experiment(folder: Path) -> Path:
    """Makes `folder` with a corpus and a file that defines the experiment of it; returns the file."""
    write_corpus(folder)
    file = folder / "tiny_experiment.py"
    file.write_text(FILE)
    return file


def experiment(folder: Path, **changes: Any) -> Experiment:
    """The experiment of the corpus in `folder`."""
    default = Experiment(
        name="tiny",
        steps=12,
        tokenizer=ByteTokenizerConfig(),
        data=DataConfig(
            CorpusConfig(TextFilesConfig((str(folder / "corpus"),)), split=HashSplit(0.2, 0.2)),
            sequence_length=16,
            batch_size=4,
        ),
        model=gpt2(layers=2, heads=2, width=16, vocab_size=259, max_length=64, dropout=0.1),
        optimizer=AdamWConfig(peak_lr=1e-2, schedule=Cosine(warmup_steps=2)),
        update=StepConfig(accumulate=2, ema_decay=0.9),
        checkpoint=CheckpointConfig(every=5),
        evaluations=(PerplexityConfig(every=6, max_bytes=300),),
        log_every=1,
    )
    return dataclasses.replace(default, **changes)


def with_source(experiment: Experiment, source: Any) -> Experiment:
    """The experiment on other data."""
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, source=source))
