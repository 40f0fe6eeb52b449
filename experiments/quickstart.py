"""Quickstart: a small LLaMA learns Python from the standard library's own source code, on a laptop CPU.

Command: bash launch/quickstart.sh            (or: llm-jax train experiments/quickstart.py)
"""

from llm_jax.checkpoints.manager import CheckpointConfig
from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.pipeline import DataConfig
from llm_jax.data.sources import StandardLibraryConfig
from llm_jax.experiment import EvaluationConfig, Experiment, SampleConfig
from llm_jax.models.families.llama import llama
from llm_jax.optim import Linear, MuonConfig
from llm_jax.tokenizers import TrainSentencePieceConfig

VOCAB_SIZE = 4096


def experiment() -> Experiment:
    return Experiment(
        name="quickstart",
        steps=600,
        tokenizer=TrainSentencePieceConfig(VOCAB_SIZE),
        data=DataConfig(CorpusConfig(StandardLibraryConfig()), sequence_length=256, batch_size=16),
        model=llama(layers=4, heads=4, width=256, hidden=704, vocab_size=VOCAB_SIZE, max_length=512),
        optimizer=MuonConfig(peak_lr=2e-3, schedule=Linear(warmup_steps=20)),
        checkpoint=CheckpointConfig(every=200),
        evaluation=EvaluationConfig(every=200, max_bytes=200_000, test=True, compressors=True),
        samples=SampleConfig(prompts=("def read_lines(path):\n", "class Stack:\n"), every=200),
    )
