"""Where the figures of a run go beside its metrics.jsonl. Derive a config type from `Tracker` to add one of your own.

tensorboard            event files in the run directory
weights_and_biases     a run at wandb.ai (pip extra `wandb`)
"""

from llm_jax.trackers.tensorboard import TensorBoardConfig
from llm_jax.trackers.tracker import FigureWriter, TrackedRun, Tracker
from llm_jax.trackers.weights_and_biases import WandbConfig

__all__ = ["FigureWriter", "TensorBoardConfig", "TrackedRun", "Tracker", "WandbConfig"]
