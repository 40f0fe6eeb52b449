"""Optimizers by config type, learning rate schedules, and weight decay masks.

config = AdamWConfig(peak_lr=1e-3, schedule=Cosine(warmup_steps=100))
transformation = config.build(steps, boxed_parameters(model))
"""

from llm_jax.optim.decay_masks import DecayAll, DecayMask, DecayMatching, DecayMatrices
from llm_jax.optim.optimizers import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    Optimizer,
    ScheduleFreeAdamWConfig,
    SGDConfig,
)
from llm_jax.optim.schedules import WSD, Constant, Cosine, InverseSqrt, Linear, Schedule

__all__ = [
    "AdafactorConfig",
    "AdamConfig",
    "AdamWConfig",
    "Constant",
    "Cosine",
    "DecayAll",
    "DecayMask",
    "DecayMatching",
    "DecayMatrices",
    "InverseSqrt",
    "LionConfig",
    "Linear",
    "MuonConfig",
    "Optimizer",
    "SGDConfig",
    "Schedule",
    "ScheduleFreeAdamWConfig",
    "WSD",
]
