"""Mixtral 8x7B as its paper states it, laid out for TPU pods.

Paper:    Jiang et al. 2024, arXiv:2401.04088, table 1: 32 layers of eight experts, two of them for every token. It
          states no data, batch, optimizer or balance loss: the first three here are LLaMA 2's (arXiv:2307.09288,
          section 2.2), the last is that of the published config.json.
Claim:    none. It states the published model; no run was made here.
Command:  llm-jax train experiments/references/mixtral_8x7b.py --data.source.source.paths PATH --tokenizer.model PATH
Hardware: a TPU v5p-128 (64 chips): experiments/benchmarks/tpu_aot.py. Larger slices take the same file; for fewer rows
          a chip at a time raise --update.accumulate.
"""

import dataclasses

from llm_jax.core.dtypes import MIXED
from llm_jax.data import CorpusConfig, DataConfig, JsonLinesConfig
from llm_jax.experiment import Experiment
from llm_jax.layers.mixers.kernels import SplashKernel
from llm_jax.models.families.mixtral import SIZES
from llm_jax.models.stack import Execution
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig, Cosine
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import Both, ExpertParallel, FullySharded, ShardingConfig
from llm_jax.tokenizers import SentencePieceTokenizerConfig
from llm_jax.train.step import StepConfig

LENGTH = 4096
ROWS = 1024
TOKENS = 2e12


def experiment() -> Experiment:
    model = SIZES["mixtral-8x7b"]().with_kernel(SplashKernel())
    return Experiment(
        name="mixtral_8x7b",
        steps=round(TOKENS / (ROWS * LENGTH)),
        tokenizer=SentencePieceTokenizerConfig("data/mixtral/tokenizer.model"),
        data=DataConfig(CorpusConfig(JsonLinesConfig(("data/text/*.jsonl",))), sequence_length=LENGTH, batch_size=ROWS),
        model=dataclasses.replace(model, execution=Execution(remat="full")),
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
        # Without the forward pass that the loss of a whole batch costs. The load is balanced in each microbatch of all
        # devices: Megatron-LM's default takes a microbatch of one data-parallel rank (`_apply_aux_loss` in
        # megatron/core/transformer/moe/router.py), MegaBlocks the tokens of one device (`batched_load_balancing_loss`
        # in megablocks/layers/moe.py), MaxText each row (`load_balance_loss` in src/maxtext/layers/moe.py).
        update=StepConfig(accumulate=4, balance_over="microbatch"),
        precision=MIXED,
        sharding=ShardingConfig(MeshConfig(data=1, fsdp=-1, expert=8), Both(FullySharded(), ExpertParallel())),
    )
