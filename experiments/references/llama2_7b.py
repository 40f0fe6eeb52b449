"""LLaMA 2 7B as its paper states it, laid out for TPU pods.

Paper:    Touvron et al. 2023, arXiv:2307.09288, table 1 and section 2.2: 2 trillion tokens in batches of 4 million,
          rows of 4,096; AdamW with b1 0.9, b2 0.95, epsilon 1e-5, decay 0.1, gradients clipped to norm 1; 2,000 updates
          of warm-up to 3e-4, then a cosine to a tenth of it. The tokenizer is the paper's SentencePiece model.
Claim:    none. It states the published model and recipe; the mixture of texts is not public, and no run was made here.
Command:  llm-jax train experiments/references/llama2_7b.py --data.source.source.paths PATH --tokenizer.model PATH
Hardware: a TPU v5p-128 (64 chips), by its compiler 46 GiB a chip: experiments/benchmarks/tpu_aot.py. Larger slices take
          the same file; for fewer rows a chip at a time raise --update.accumulate.
"""

import dataclasses

from llm_jax.core.dtypes import MIXED
from llm_jax.data import CorpusConfig, DataConfig, JsonLinesConfig
from llm_jax.experiment import Experiment
from llm_jax.layers.attention.kernels import SplashKernel
from llm_jax.models.families.llama import SIZES
from llm_jax.models.stack import Execution
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig, Cosine
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import FullySharded, ShardingConfig
from llm_jax.tokenizers import SentencePieceTokenizerConfig
from llm_jax.train.step import StepConfig

LENGTH = 4096
ROWS = 1024
TOKENS = 2e12


def experiment() -> Experiment:
    model = SIZES["llama2-7b"]().with_kernel(SplashKernel())
    return Experiment(
        name="llama2_7b",
        steps=round(TOKENS / (ROWS * LENGTH)),
        tokenizer=SentencePieceTokenizerConfig("data/llama2/tokenizer.model"),
        data=DataConfig(CorpusConfig(JsonLinesConfig(("data/text/*.jsonl",))), sequence_length=LENGTH, batch_size=ROWS),
        model=dataclasses.replace(model, execution=Execution(remat="projections")),
        objective=CausalLMConfig(chunks=4),
        optimizer=AdamWConfig(
            peak_lr=3e-4,
            schedule=Cosine(warmup_steps=2000, final_fraction=0.1),
            b1=0.9,
            b2=0.95,
            epsilon=1e-5,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        update=StepConfig(accumulate=4),
        precision=MIXED,
        sharding=ShardingConfig(MeshConfig(data=1, fsdp=-1), FullySharded()),
    )
