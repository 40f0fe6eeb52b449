"""Text or synthetic tasks in, batches out: deterministic, random-access, the same for any number of hosts."""

from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.feed import global_batch, host_share
from llm_jax.data.markov import MarkovConfig
from llm_jax.data.mixture import MixtureConfig, WeightedSource
from llm_jax.data.packing import PackedConfig, Packing, RandomWindowsConfig
from llm_jax.data.pipeline import DataConfig, Dataset, EvaluationSet
from llm_jax.data.row_source import Source
from llm_jax.data.sources import (
    ArrayRecordConfig,
    JsonLinesConfig,
    ParquetConfig,
    Reader,
    StandardLibraryConfig,
    TextFilesConfig,
    TFDSConfig,
)
from llm_jax.data.splits import ContentSplit, HashSplit, RangeSplit, SeparateSources, Split
from llm_jax.data.synthetic import CopyConfig, InductionConfig, ModularAdditionConfig

__all__ = [
    # What a component of one's own derives from.
    "Source",
    "Reader",
    "Split",
    "Packing",
    # The data of an experiment, and what it becomes.
    "DataConfig",
    "Dataset",
    "EvaluationSet",
    "global_batch",
    "host_share",
    # Text: where it comes from, how it is split, how it is packed.
    "CorpusConfig",
    "TextFilesConfig",
    "JsonLinesConfig",
    "ParquetConfig",
    "ArrayRecordConfig",
    "TFDSConfig",
    "StandardLibraryConfig",
    "ContentSplit",
    "HashSplit",
    "RangeSplit",
    "SeparateSources",
    "PackedConfig",
    "RandomWindowsConfig",
    # Tasks with a known optimum.
    "MarkovConfig",
    "CopyConfig",
    "ModularAdditionConfig",
    "InductionConfig",
    # Several sources.
    "MixtureConfig",
    "WeightedSource",
]
