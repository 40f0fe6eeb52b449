"""Arrow IPC files and streams, in which the `datasets` library of Hugging Face keeps data sets, and Feather files."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.ipc

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.data.sources.table_rows import TableConfig, TableRows
from llm_jax.data.sources.text_source import TextSource

_ROWS_PER_READ = 1024
_FILE_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@configclass
class ArrowConfig(TableConfig):
    """Arrow IPC files, streams and Feather files of version 2, one document per row."""

    def build(self) -> TextSource:
        return Arrow(self)


class Arrow(TableRows):
    """Documents of Arrow files, named `file:row` with rows counted from 0."""

    def __init__(self, config: ArrowConfig):
        super().__init__("Arrow", config)

    def batches(self, path: Path) -> Iterator[pyarrow.RecordBatch]:
        with pyarrow.memory_map(str(path)) as file:
            is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
            file.seek(0)
            for stored in self._of_file(path, file) if is_file else self._of_stream(path, file):
                batch = self.as_bytes(stored)
                # Offsets of a damaged file could lead out of its buffers.
                batch.validate(full=True)
                for start in range(0, batch.num_rows, _ROWS_PER_READ):
                    yield batch.slice(start, _ROWS_PER_READ)

    def _of_file(self, path: Path, file: pyarrow.NativeFile) -> Iterator[pyarrow.RecordBatch]:
        reader = pyarrow.ipc.open_file(file)
        self.check_columns(path, reader.schema)
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))

    def _of_stream(self, path: Path, file: pyarrow.NativeFile) -> Iterator[pyarrow.RecordBatch]:
        reader = pyarrow.ipc.open_stream(file)
        self.check_columns(path, reader.schema)
        # A stream that is truncated between two batches reads as if it ended there.
        position = file.tell()
        file.seek(max(0, file.size() - len(_END_OF_STREAM)))
        check(
            file.read() == _END_OF_STREAM,
            f"cannot read {path}: it is truncated, since it has no end-of-stream marker; set the path to a "
            "complete Arrow file",
        )
        file.seek(position)
        yield from reader
