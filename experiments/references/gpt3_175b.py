"""GPT-3 175B as its paper states it, laid out for TPU pods.

Paper:    Brown et al. 2020, arXiv:2005.14165, tables 2.1 and 2.2 and appendix B: 300 billion tokens in batches of 3.2
          million, rows of 2,048; Adam with b1 0.9, b2 0.95, epsilon 1e-8, decay 0.1, gradients clipped to norm 1;
          375 million tokens of warm-up to 6e-5, then a cosine to a tenth of it at 260 billion tokens. Dense and locally
          banded layers alternate; the width of the bands is not stated, ours is 256. The tokenizer is GPT-2's.
Claim:    none. It states the published model and recipe; the texts are not public, and no run was made here. Left out:
          the growth of the batch from 32 thousand tokens over the first billions.
Command:  llm-jax train experiments/references/gpt3_175b.py
          with the texts and the tokenizer where the file says, or elsewhere and fields overridden
Hardware: a TPU v5p-512 (256 chips). Larger slices take the same file; for fewer rows a chip at a time raise
          --update.accumulate.
"""

import dataclasses

from llm_jax.core.dtypes import MIXED
from llm_jax.data import CorpusConfig, DataConfig, JsonLinesConfig, MixtureConfig, WeightedSource
from llm_jax.experiment import Experiment
from llm_jax.layers.attention.kernels import SplashKernel
from llm_jax.models.families.gpt2 import SIZES
from llm_jax.models.stack import Execution
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig, Cosine
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import FullySharded, ShardingConfig
from llm_jax.tokenizers import HuggingFaceTokenizerConfig
from llm_jax.train.step import StepConfig

LENGTH = 2048
ROWS = 1536
TOKENS, WARM_UP, DECAYED = 300e9, 375e6, 260e9
END = "<|endoftext|>"
PERCENT = {"common_crawl": 60, "webtext2": 22, "books1": 8, "books2": 8, "wikipedia": 3}


def _source(name: str, percent: float) -> WeightedSource:
    return WeightedSource(name, CorpusConfig(JsonLinesConfig((f"data/{name}/*.jsonl",)), bos=False), percent)


def experiment() -> Experiment:
    tokens = ROWS * LENGTH
    model = SIZES["gpt3-175b"]().with_kernel(SplashKernel())
    return Experiment(
        name="gpt3_175b",
        steps=round(TOKENS / tokens),
        tokenizer=HuggingFaceTokenizerConfig("data/gpt2/tokenizer.json", bos=END, eos=END, pad=END),
        data=DataConfig(MixtureConfig(tuple(map(_source, *zip(*PERCENT.items(), strict=True)))), LENGTH, ROWS),
        model=dataclasses.replace(model, execution=Execution(remat="full")),
        objective=CausalLMConfig(chunks=4),
        optimizer=AdamWConfig(
            peak_lr=6e-5,
            schedule=Cosine(round(WARM_UP / tokens), final_fraction=0.1, decay_steps=round(DECAYED / tokens)),
            b1=0.9,
            b2=0.95,
            epsilon=1e-8,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        update=StepConfig(accumulate=2),
        precision=MIXED,
        sharding=ShardingConfig(MeshConfig(data=1, fsdp=-1), FullySharded()),
    )
