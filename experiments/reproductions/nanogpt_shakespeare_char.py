"""nanoGPT's CPU recipe: characters of Tiny Shakespeare.

Paper:    none; README of karpathy/nanoGPT, section "quick start", the recipe for a CPU.
Claim:    validation loss 1.88 after 2,000 updates (our run of the original on two CPU cores: 1.8857).
Command:  llm-jax train experiments/reproductions/nanogpt_shakespeare_char.py
          with the text of karpathy/char-rnn, data/tinyshakespeare/input.txt, at data/tinyshakespeare/input.txt, or
          elsewhere and --data.source.source.paths PATH; for other seeds --seed 1 --name nanogpt_shakespeare_char_1
Hardware: two CPU cores.
Measured: 2026-11-22, seeds 0, 1, 2: validation loss 1.9040, standard deviation 0.0030 (1.9046, 1.9008, 1.9067), over
          the whole validation part. The recipe in PyTorch, scored so too, seeds 1337, 1338, 1339: 1.9087, standard
          deviation 0.0150 (1.8997, 1.9004, 1.9260). The original's 1.88 is an estimate from 20 random batches, whose
          own standard deviation is 0.016: the three agree (LOG.md). 90 s a run with evaluations.
"""

from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.packing import RandomWindowsConfig
from llm_jax.data.pipeline import DataConfig
from llm_jax.data.sources import TextFilesConfig
from llm_jax.data.splits import RangeSplit
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import Experiment, SampleConfig
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.optim import AdamWConfig, Cosine
from llm_jax.tokenizers import CharacterTokenizerConfig

LENGTH = 64
ALPHABET = 65
SPECIAL_TOKENS = 3


def experiment() -> Experiment:
    return Experiment(
        name="nanogpt_shakespeare_char",
        steps=2000,
        seed=0,
        tokenizer=CharacterTokenizerConfig(),
        data=DataConfig(
            CorpusConfig(
                TextFilesConfig(("data/tinyshakespeare/input.txt",)),
                split=RangeSplit(validation=0.1),
                packing=RandomWindowsConfig(),
                bos=False,
                eos=False,
            ),
            sequence_length=LENGTH,
            batch_size=12,
        ),
        model=gpt2(layers=4, heads=4, width=128, vocab_size=ALPHABET + SPECIAL_TOKENS, max_length=LENGTH, bias=False),
        optimizer=AdamWConfig(
            peak_lr=1e-3,
            schedule=Cosine(warmup_steps=100, final_fraction=0.1, decay_steps=2000),
            b1=0.9,
            b2=0.99,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        evaluations=(PerplexityConfig(every=250),),
        checkpoint=CheckpointConfig(every=1000),
        samples=SampleConfig(
            prompts=("\n",), every=2000, new_tokens=LENGTH - 1, sampling=SamplingConfig(temperature=0.8)
        ),
    )
