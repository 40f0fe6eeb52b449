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

import llama2_7b

from llm_jax.experiment import Experiment
from llm_jax.layers.attention.kernels import SplashKernel
from llm_jax.models.families.mixtral import SIZES
from llm_jax.models.stack import Execution
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import Combined, ExpertParallel, FullySharded, ShardingConfig
from llm_jax.tokenizers import SentencePieceTokenizerConfig
from llm_jax.train.step import StepConfig


def experiment() -> Experiment:
    model = SIZES["mixtral-8x7b"]().with_kernel(SplashKernel())
    return dataclasses.replace(
        llama2_7b.experiment(),
        name="mixtral_8x7b",
        tokenizer=SentencePieceTokenizerConfig("data/mixtral/tokenizer.model"),
        model=dataclasses.replace(model, execution=Execution(remat="full")),
        # Without the forward pass that the loss of a whole batch costs. The load is balanced in each microbatch of all
        # devices: Megatron-LM's default takes a microbatch of one data-parallel rank (`_apply_aux_loss` in
        # megatron/core/transformer/moe/router.py), MegaBlocks the tokens of one device (`batched_load_balancing_loss`
        # in megablocks/layers/moe.py), MaxText each row (`load_balance_loss` in src/maxtext/layers/moe.py).
        update=StepConfig(accumulate=4, balance_over="microbatch"),
        sharding=ShardingConfig(MeshConfig(data=1, fsdp=-1, expert=8), Combined(FullySharded(), ExpertParallel())),
    )
