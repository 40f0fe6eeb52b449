"""TensorFlow Datasets without TensorFlow: data sets stored as array_record, read by `as_data_source`."""

import dataclasses
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_jax.core.checks import check, did_you_mean
from llm_jax.core.configclass import configclass
from llm_jax.data.sources.record_text import record_bytes
from llm_jax.data.sources.text_source import (
    EmptyText,
    InvalidUtf8,
    Reader,
    Record,
    RecordSource,
    Storage,
    TextSource,
    check_policies,
)

if TYPE_CHECKING:
    import tensorflow_datasets


@configclass
class TFDSConfig(Reader):
    """One split of a TFDS data set, one document per example."""

    name: str
    """Data set, with configuration and version where needed: `lm1b`, `wiki40b/en`, `my_set:1.0.0`."""
    split: str
    """Split, or a slice of one: `train`, `train[:10%]`."""
    field: str | None = "text"
    """Feature that holds the document; None: a document is the whole example as a JSON object."""
    data_dir: str | None = None
    """Folder of prepared data sets; None: TFDS's own default, `~/tensorflow_datasets`."""
    download: bool = False
    """True: download and prepare the data set if it is not in `data_dir`. False: a missing data set is an error."""
    invalid_utf8: InvalidUtf8 = "error"
    empty: EmptyText = "skip"

    def __post_init__(self) -> None:
        check(bool(self.name), "name is '': set it to the name of a TFDS data set")
        check(bool(self.split), "split is '': set it to a split of the data set, for instance 'train'")
        check(self.field != "", "field is '': set it to the feature that holds the text, or to None for whole examples")
        check_policies(self.invalid_utf8, self.empty)

    def build(self) -> TextSource:
        return TFDS(self)


class TFDS(RecordSource):
    """Documents of one TFDS split, named `set/config/split:index`.

    The index is that of the whole split, so that a document has the same name in every slice."""

    def __init__(self, config: TFDSConfig):
        parsing = (config.name, config.split, config.field)
        super().__init__(f"TFDS {config.name} ({config.split})", config.invalid_utf8, config.empty, parsing)
        self._config = config

    def storages(self) -> list[Storage]:
        return [storage for storage, _ in _slices(self._config)]

    def records(self, storage: Storage) -> Iterator[Record]:
        config, part = self._config, dict(_slices(self._config))[storage]
        # Called by name, because the method's decorator hides `split` from type checkers.
        examples = operator.methodcaller("as_data_source", split=part.split)(_builder(config))
        for index in part.indices:
            name, example, field = f"{part.name}:{index}", examples[index], config.field
            place = f"TFDS {name}"
            yield Record(name, place, record_bytes(example, place) if field is None else _text(place, example, field))


@dataclasses.dataclass(frozen=True)
class _Slice:
    """Consecutive examples of one split."""

    split: str
    name: str
    """Set, configuration and split."""
    indices: range


def _slices(config: TFDSConfig) -> list[tuple[Storage, _Slice]]:
    """The slices of a split such as `train[:10%]+test`, and the files that hold them.

    Raises:
      ValueError: as `_builder`, and for a split that the data set does not have.
    """
    import tensorflow_datasets

    builder = _builder(config)
    splits = builder.info.splits
    prefix = [builder.name, builder.builder_config.name] if builder.builder_config else [builder.name]
    try:
        parts = tensorflow_datasets.core.ReadInstruction.from_spec(config.split).to_absolute(splits)
    except (ValueError, NotImplementedError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"TFDS {config.name} has no split {config.split!r} ({reason}): its splits are {sorted(splits)}, and a "
            "slice is written train[:10%] or train[100:200]"
        ) from error
    found = []
    for part in parts:
        info, name = splits[part.splitname], "/".join([*prefix, part.splitname])
        indices = range(info.num_examples)[part.from_ : part.to]
        paths = sorted({Path(instruction.filename) for instruction in info.file_instructions})
        storage = Storage(f"{name}[{indices.start}:{indices.stop}]", tuple(paths))
        found.append((storage, _Slice(part.splitname, name, indices)))
    return found


def _builder(config: TFDSConfig) -> "tensorflow_datasets.core.DatasetBuilder":
    """The builder of the data set. Raises ValueError if the data set is not known or not prepared."""
    import tensorflow_datasets

    place = config.data_dir or "the default folder of TFDS"
    try:
        builder = tensorflow_datasets.builder(config.name, data_dir=config.data_dir, file_format="array_record")
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        raise ValueError(f"TFDS has no data set {config.name!r} in {place}: correct name or data_dir") from error
    if config.download:
        builder.download_and_prepare()
    check(
        builder.is_prepared(),
        f"TFDS {config.name} is not prepared as array_record in {place}: set download to True to prepare it",
    )
    return builder


def _text(place: str, example: dict[str, Any], field: str) -> bytes:
    """UTF-8 bytes of a feature. Lone surrogates become invalid UTF-8, to which the reader's policy applies."""
    remedy = f"its features are {sorted(example)}: set `field`"
    check(field in example, f"{place} has no feature {field!r}{did_you_mean(field, example)}; {remedy}")
    value = example[field]
    check(
        isinstance(value, bytes | str), f"{place}: feature {field!r} holds {type(value).__name__}, not text; {remedy}"
    )
    return value.encode(errors="surrogatepass") if isinstance(value, str) else value
