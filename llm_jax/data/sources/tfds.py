"""TensorFlow Datasets without TensorFlow: data sets stored as array_record, read by `as_data_source`."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import tensorflow_datasets

from llm_jax.core.checks import check, did_you_mean
from llm_jax.data.sources.text_source import (
    EmptyText,
    InvalidUtf8,
    Record,
    RecordSource,
    Storage,
    TextSource,
    check_policies,
)


@dataclasses.dataclass(frozen=True)
class TFDSConfig:
    """One split of a TFDS data set, one document per example."""

    name: str
    """Data set, with configuration and version where needed: `lm1b`, `wiki40b/en`, `my_set:1.0.0`."""
    split: str
    """Split, or a slice of one: `train`, `train[:10%]`."""
    field: str = "text"
    """Feature that holds the document."""
    data_dir: str | None = None
    """Folder of prepared data sets; None: TFDS's own default, `~/tensorflow_datasets`."""
    download: bool = False
    """Fetch and prepare the data set if it is not in `data_dir`; otherwise its absence is an error."""
    invalid_utf8: InvalidUtf8 = "error"
    empty: EmptyText = "skip"

    def __post_init__(self) -> None:
        check(bool(self.name), "name is '': give the name of a TFDS data set")
        check(bool(self.split), "split is '': give a split of the data set, for instance 'train'")
        check_policies(self.invalid_utf8, self.empty)

    def build(self) -> TextSource:
        return TFDS(self)


class TFDS(RecordSource):
    """Documents of one TFDS split, named `set/split:index`."""

    def __init__(self, config: TFDSConfig):
        parsing = (config.name, config.split, config.field)
        super().__init__(f"TFDS {config.name} ({config.split})", config.invalid_utf8, config.empty, parsing)
        self._config = config

    def storages(self) -> list[Storage]:
        config = self._config
        split = _builder(config).info.splits[config.split]
        paths = sorted({Path(instruction.filename) for instruction in split.file_instructions})
        return [Storage(f"{config.name}/{config.split}", tuple(paths))]

    def records(self, storage: Storage) -> Iterator[Record]:
        config = self._config
        for index, example in enumerate(_builder(config).as_data_source(split=config.split)):
            name = f"{config.name}/{config.split}:{index}"
            if not isinstance(example.get(config.field), bytes | str):
                self._refuse(name, example)
            value = example[config.field]
            yield Record(name, f"TFDS {name}", value if isinstance(value, bytes) else _utf8(value))

    def _refuse(self, name: str, example: dict) -> NoReturn:
        field, remedy = self._config.field, f"its features are {sorted(example)}: set `field`"
        check(field in example, f"TFDS {name} has no feature {field!r}{did_you_mean(field, example)}; {remedy}")
        raise ValueError(f"TFDS {name}: feature {field!r} holds {type(example[field]).__name__}, not text; {remedy}")


def _builder(config: TFDSConfig) -> tensorflow_datasets.core.DatasetBuilder:
    """Raises ValueError if the data set is not known or not prepared, or has no such split."""
    place = config.data_dir or "the default folder of TFDS"
    try:
        builder = tensorflow_datasets.builder(config.name, data_dir=config.data_dir, file_format="array_record")
    except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
        raise ValueError(f"TFDS knows no data set {config.name!r} in {place}: correct name or data_dir") from error
    if config.download:
        builder.download_and_prepare()
    check(
        builder.is_prepared(),
        f"TFDS {config.name} is not prepared as array_record in {place}: set download to True to do so",
    )
    check(
        config.split.partition("[")[0] in builder.info.splits or "+" in config.split,
        f"TFDS {config.name} has no split {config.split!r}: its splits are {sorted(builder.info.splits)}",
    )
    return builder


def _utf8(text: str) -> bytes:
    """Lone surrogates give bytes that are no UTF-8, for the reader's policy."""
    return text.encode(errors="surrogatepass")
