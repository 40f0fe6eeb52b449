"""Readers of text and of records. `build()` of each config returns a `TextSource`.

A record has several fields. It is a document whose text is one JSON object, see `record_text`, so that digests, splits
and caches treat records as text. Readers with a `field` yield text of that field, or records if it is None.
"""

from llm_jax.data.sources.array_record import ArrayRecordConfig
from llm_jax.data.sources.arrow import ArrowConfig
from llm_jax.data.sources.csv_files import CsvConfig
from llm_jax.data.sources.json_lines import JsonLinesConfig
from llm_jax.data.sources.parallel_text import ParallelTextConfig
from llm_jax.data.sources.parquet import ParquetConfig
from llm_jax.data.sources.record_text import record_text
from llm_jax.data.sources.squad import SquadConfig
from llm_jax.data.sources.standard_library import StandardLibraryConfig
from llm_jax.data.sources.text_files import TextFilesConfig
from llm_jax.data.sources.text_source import Document, Reader, TextSource
from llm_jax.data.sources.tfds import TFDSConfig

__all__ = [
    "ArrayRecordConfig",
    "ArrowConfig",
    "CsvConfig",
    "Document",
    "JsonLinesConfig",
    "ParallelTextConfig",
    "ParquetConfig",
    "Reader",
    "SquadConfig",
    "StandardLibraryConfig",
    "TFDSConfig",
    "TextFilesConfig",
    "TextSource",
    "record_text",
]
