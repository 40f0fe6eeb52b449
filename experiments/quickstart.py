"""Quickstart: a small LLaMA learns Python from the standard library's own source code.

Paper:    none. A language model is a compressor (Delétang et al. 2023, arXiv:2309.10668), so its bits per byte on
          files it has not seen stand beside those of gzip, xz and a byte 5-gram of the same text.
Claim:    at most 2.0 bits per byte on the test files, and fewer than the byte 5-gram.
Command:  bash launch/quickstart.sh        (or: llm-jax train experiments/quickstart.py)
Hardware: two CPU cores, about six minutes.

The sizes follow from that budget: about four million tokens can be seen, and a model of one or two million parameters
makes the most of them. Learning rate, vocabulary and batch were chosen by short runs on the validation files (LOG.md).
"""

from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.data import CorpusConfig, DataConfig, HashSplit, StandardLibraryConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import Experiment, SampleConfig
from llm_jax.models.families.llama import llama
from llm_jax.optim import Linear, MuonConfig
from llm_jax.tokenizers import TrainSentencePieceConfig

VOCAB_SIZE = 4096
LENGTH = 256


def experiment() -> Experiment:
    return Experiment(
        name="quickstart",
        steps=2000,
        tokenizer=TrainSentencePieceConfig(VOCAB_SIZE),
        data=DataConfig(
            CorpusConfig(StandardLibraryConfig(), split=HashSplit(validation=0.03, test=0.03)),
            sequence_length=LENGTH,
            batch_size=8,
        ),
        model=llama(layers=4, heads=4, width=128, hidden=352, vocab_size=VOCAB_SIZE, max_length=LENGTH),
        optimizer=MuonConfig(peak_lr=1e-2, schedule=Linear(warmup_steps=20)),
        checkpoint=CheckpointConfig(every=500),
        evaluations=(PerplexityConfig(every=500, max_bytes=200_000, test=True, compressors=True),),
        samples=SampleConfig(prompts=("def read_lines(path):\n", "class Stack:\n"), every=1000),
    )
