"""The training loop and its hooks. Derive a configclass from `HookConfig` to attach your own hook."""

from llm_jax.train.gradient_norms import GradientNormsConfig
from llm_jax.train.hook_config import HookConfig, TrainingRun
from llm_jax.train.loop import Hook, Stop
from llm_jax.train.profile import ProfileConfig
from llm_jax.train.state import TrainState
from llm_jax.train.step import StepConfig

__all__ = [
    "GradientNormsConfig",
    "Hook",
    "HookConfig",
    "ProfileConfig",
    "Stop",
    "StepConfig",
    "TrainState",
    "TrainingRun",
]
