"""Readers of text. `build()` of each config returns a `TextSource`."""

from llm_jax.data.sources.array_record import ArrayRecordConfig
from llm_jax.data.sources.json_lines import JsonLinesConfig
from llm_jax.data.sources.parquet import ParquetConfig
from llm_jax.data.sources.standard_library import StandardLibraryConfig
from llm_jax.data.sources.text_files import TextFilesConfig
from llm_jax.data.sources.text_source import Document, Reader, TextSource
from llm_jax.data.sources.tfds import TFDSConfig

__all__ = [
    "ArrayRecordConfig",
    "Document",
    "JsonLinesConfig",
    "ParquetConfig",
    "Reader",
    "StandardLibraryConfig",
    "TFDSConfig",
    "TextFilesConfig",
    "TextSource",
]
