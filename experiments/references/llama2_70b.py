"""LLaMA 2 70B as its paper states it, laid out for TPU pods.

Paper:    Touvron et al. 2023, arXiv:2307.09288, table 1 and section 2.2: 2 trillion tokens in batches of 4 million,
          rows of 4,096; AdamW with b1 0.9, b2 0.95, epsilon 1e-5, decay 0.1, gradients clipped to norm 1; 2,000 updates
          of warm-up to 1.5e-4, then a cosine to a tenth of it. The tokenizer is the paper's SentencePiece model.
Claim:    none. It states the published model and recipe; the mixture of texts is not public, and no run was made here.
Command:  llm-jax train experiments/references/llama2_70b.py --data.source.source.paths PATH --tokenizer.model PATH
Hardware: a TPU v5p-512 (256 chips): experiments/benchmarks/tpu_aot.py. Larger slices take
          the same file; for fewer rows a chip at a time raise --update.accumulate.
"""

import dataclasses

import llama2_7b

from llm_jax.experiment import Experiment
from llm_jax.layers.attention.kernels import SplashKernel
from llm_jax.models.families.llama import SIZES
from llm_jax.models.stack import Execution
from llm_jax.train.step import StepConfig


def experiment() -> Experiment:
    base = llama2_7b.experiment()
    model = SIZES["llama2-70b"]().with_kernel(SplashKernel())
    return dataclasses.replace(
        base,
        name="llama2_70b",
        model=dataclasses.replace(model, execution=Execution(remat="full")),
        optimizer=dataclasses.replace(base.optimizer, peak_lr=1.5e-4),
        update=StepConfig(accumulate=2),
    )
