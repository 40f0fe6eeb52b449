"""Strategies: one visible table each, from the logical words of axes.py to mesh axes."""

import dataclasses

from llm_jax.core.checks import check
from llm_jax.sharding import axes
from llm_jax.sharding.mesh import DATA, FSDP, TENSOR, MeshConfig

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
            axes.STREAM: None,
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


@dataclasses.dataclass(frozen=True)
class TensorParallel:
    """Every layer is cut: attention by heads, feed-forward layers by their inner features, embedding and scores by
    tokens (Shoeybi et al. 2019, arXiv:1909.08053, section 3)."""

    sequence: bool = False
    """Whether the residual stream between the layers is divided too, by places of the row (Korthikanti et al. 2022,
    arXiv:2205.05198, 4.2.2); else every device holds all of it."""

    def table(self) -> Table:
        cut = dict.fromkeys((axes.HEADS, axes.KV_HEADS, axes.BLOCKS, axes.MLP, axes.VOCAB), TENSOR)
        return DataParallel().table() | cut | {axes.STREAM: TENSOR if self.sequence else None}


@dataclasses.dataclass(frozen=True)
class Both:
    """Two strategies at once, each over mesh axes of its own, such as FullySharded and TensorParallel."""

    one: "Strategy"
    other: "Strategy"

    def table(self) -> Table:
        """
        Raises:
          ValueError: if both divide the same word.
        """
        one, other, plain = self.one.table(), self.other.table(), DataParallel().table()
        twice = [word for word in plain if plain[word] not in (one[word], other[word])]
        check(
            not twice,
            f"{type(self.one).__name__} and {type(self.other).__name__} both divide {', '.join(twice)}: combine "
            "strategies that divide different things",
        )
        return {word: one[word] if one[word] != plain[word] else other[word] for word in plain}


Strategy = DataParallel | FullySharded | TensorParallel | Both


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """How arrays are laid over devices."""

    mesh: MeshConfig = MeshConfig()
    strategy: Strategy = DataParallel()

    def __post_init__(self):
        named = [(value,) if isinstance(value, str) else value or () for value in self.strategy.table().values()]
        used = {axis for names in named for axis in names}
        idle = [axis for axis, size in dataclasses.asdict(self.mesh).items() if size != 1 and axis not in used]
        kind = type(self.strategy).__name__
        check(
            not idle,
            f"mesh.{', mesh.'.join(idle)} is not 1 and strategy {kind} divides nothing over it: all devices along it "
            "would do the same; set it to 1, or take a strategy that uses it (TensorParallel, Both)",
        )
