"""Batches from text or synthetic tasks: deterministic, random-access, the same for any number of processes."""

from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.feed import global_batch, host_share
from llm_jax.data.markov import MarkovConfig
from llm_jax.data.mixture import MixtureConfig, WeightedSource
from llm_jax.data.packing import PackedConfig, Packing, RandomWindowsConfig
from llm_jax.data.pipeline import DataConfig, Dataset, EvaluationSet
from llm_jax.data.row_source import Source
from llm_jax.data.sources import (
    ArrayRecordConfig,
    ArrowConfig,
    CsvConfig,
    JsonLinesConfig,
    ParallelTextConfig,
    ParquetConfig,
    Reader,
    SquadConfig,
    StandardLibraryConfig,
    TextFilesConfig,
    TFDSConfig,
)
from llm_jax.data.splits import ContentSplit, HashSplit, RangeSplit, SeparateSources, Split
from llm_jax.data.structured_records import RecordsConfig
from llm_jax.data.synthetic import CopyConfig, InductionConfig, ModularAdditionConfig

__all__ = [
    # Base classes for components of your own.
    "Source",
    "Reader",
    "Split",
    "Packing",
    # The data of an experiment and its batches.
    "DataConfig",
    "Dataset",
    "EvaluationSet",
    "global_batch",
    "host_share",
    # Text and records: readers, splits, packing.
    "CorpusConfig",
    "TextFilesConfig",
    "JsonLinesConfig",
    "ParquetConfig",
    "ArrowConfig",
    "CsvConfig",
    "ArrayRecordConfig",
    "TFDSConfig",
    "ParallelTextConfig",
    "SquadConfig",
    "StandardLibraryConfig",
    "ContentSplit",
    "HashSplit",
    "RangeSplit",
    "SeparateSources",
    "PackedConfig",
    "RandomWindowsConfig",
    # Structured records: pairs of texts, texts with labels.
    "RecordsConfig",
    # Tasks with a known optimum.
    "MarkovConfig",
    "CopyConfig",
    "ModularAdditionConfig",
    "InductionConfig",
    # Several sources.
    "MixtureConfig",
    "WeightedSource",
]
