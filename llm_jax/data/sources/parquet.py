"""Parquet files, the format of text data sets on the Hugging Face Hub."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from llm_jax.core.configclass import configclass
from llm_jax.data.sources.table_rows import TableConfig, TableRows
from llm_jax.data.sources.text_source import TextSource

_ROWS_PER_READ = 1024
_READ_BUFFER = 2**20


@configclass
class ParquetConfig(TableConfig):
    """Parquet files, one document per row."""

    def build(self) -> TextSource:
        return Parquet(self)


class Parquet(TableRows):
    """Documents of Parquet files, named `file:row` with rows counted from 0."""

    def __init__(self, config: ParquetConfig):
        super().__init__("Parquet", config)
        self._columns = None if config.field is None else [config.field]

    def batches(self, path: Path) -> Iterator[pyarrow.RecordBatch]:
        with (
            # With a small buffer and no pre_buffer a reader holds pages of a row group, not the whole row group.
            pyarrow.parquet.ParquetFile(
                path, buffer_size=_READ_BUFFER, pre_buffer=False, page_checksum_verification=True
            ) as file
        ):
            self.check_columns(path, file.schema_arrow)
            yield from file.iter_batches(_ROWS_PER_READ, columns=self._columns, use_threads=False)
