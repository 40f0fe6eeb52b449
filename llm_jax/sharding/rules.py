"""Strategies: one visible table each, from the logical words of axes.py to mesh axes."""

import dataclasses

from llm_jax.sharding import axes
from llm_jax.sharding.mesh import DATA, FSDP, MeshConfig

Table = dict[str, str | tuple[str, ...] | None]

_BATCH = (DATA, FSDP)


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """Every device holds all parameters and sees its own examples."""

    def table(self) -> Table:
        return {
            axes.BATCH: _BATCH,
            axes.LENGTH: None,
            axes.WIDTH: None,
            axes.EMBED: None,
            axes.HEADS: None,
            axes.KV_HEADS: None,
            axes.BLOCKS: None,
            axes.HEAD_DIM: None,
            axes.MLP: None,
            axes.VOCAB: None,
            axes.NORM: None,
            axes.POSITIONS: None,
            axes.TYPES: None,
            axes.CLASSES: None,
            axes.LAYERS: None,
        }


@dataclasses.dataclass(frozen=True)
class FullySharded:
    """FSDP, or ZeRO stage 3 (Rajbhandari et al. 2020, arXiv:1910.02054): parameters and optimizer state are divided
    along the model width and gathered layer by layer. Norm scales, a few kilobytes, stay whole."""

    def table(self) -> Table:
        return DataParallel().table() | {axes.EMBED: FSDP}


Strategy = DataParallel | FullySharded


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """How arrays are laid over devices."""

    mesh: MeshConfig = MeshConfig()
    strategy: Strategy = DataParallel()
