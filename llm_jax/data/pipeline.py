"""The data of an experiment: its config, and the batches that each process reads independently."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from llm_jax.core import rng
from llm_jax.core.checks import check, check_divides, check_not_negative, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.duplicates import census, fingerprints, remembered
from llm_jax.data.examples import Examples, Row
from llm_jax.data.mixture import MixtureConfig
from llm_jax.data.read_source import ReadSource
from llm_jax.data.row_source import AnyExamples, EvaluationRows, RowContext, Rows, Source
from llm_jax.data.sources import TextSource
from llm_jax.data.splits import Joined, Limited, Part
from llm_jax.data.structured_records import RecordsConfig
from llm_jax.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    import grain

VALIDATION = "validation"
"""Name of the held-out set that is evaluated during training, or of the mean over several sets."""
# Number of training batches: a grain.MapDataset has a length, and training has no end.
_ENDLESS = 2**40


@configclass
class DataConfig:
    """The training and evaluation data, the sequence length and the batch size."""

    source: Source
    sequence_length: int
    """Number of targets per row. A row has one token more."""
    batch_size: int
    """Rows per step, over all processes."""
    read_ahead: int = 4
    """Number of batches that a background thread prefetches; 0: no prefetching."""

    def __post_init__(self) -> None:
        check_positive(sequence_length=self.sequence_length, batch_size=self.batch_size)
        check_not_negative(read_ahead=self.read_ahead)

    @property
    def bos(self) -> bool:
        """Whether documents begin with the tokenizer's bos. If so, prompts must begin with it too."""
        return all(isinstance(source, CorpusConfig) and source.bos for source in self._sources)

    @property
    def eos(self) -> bool:
        """Whether documents end with the tokenizer's eos. If so, whole texts must end with it too."""
        return all(isinstance(source, CorpusConfig) and source.eos for source in self._sources)

    @property
    def held_out(self) -> "HeldOut":
        """The evaluation sets that are used during training."""
        if not isinstance(self.source, MixtureConfig):
            return HeldOut({VALIDATION: (self.source, 1.0)})
        last = self.source.steps()[-1]
        return HeldOut({f"{VALIDATION}/{one.name}": (one.source, one.weight_at(last)) for one in self.source.sources})

    def text(self, part: Part, max_bytes: int | None = None) -> TextSource:
        """The text of `part` before tokenising, of all sources of a mixture in order. With `max_bytes`, the sample of
        it that a limited evaluation uses.

        Raises:
          ValueError: if a source is synthetic, or has no such part.
        """
        texts: list[TextSource] = []
        for source in self._sources:
            if not isinstance(source, ReadSource):
                raise ValueError(f"{type(source).__name__} has no text: use a CorpusConfig")
            texts.append(source.text(part))
        if max_bytes is not None:
            texts = [Limited(text, max_bytes) for text in texts]
        return texts[0] if len(texts) == 1 else Joined(texts)

    def build(
        self,
        tokenizer: Tokenizer | None,
        cache: Path,
        seed: int,
        examples: AnyExamples = Examples(),  # noqa: B008
    ) -> "Dataset":
        """Tokenises the training part, or reads it from `cache`. `examples` are the objective's.

        Raises:
          ValueError: if the text cannot be read or decoded, or the training part is smaller than one batch.
        """
        for source in self._sources:
            _check_examples(source, examples)
        return Dataset(self, RowContext(tokenizer, cache, self.sequence_length, self.batch_size, seed, examples))

    @property
    def _sources(self) -> list[Source]:
        if isinstance(self.source, MixtureConfig):
            return [weighted.source for weighted in self.source.sources]
        return [self.source]


def _check_examples(source: Source, examples: AnyExamples) -> None:
    """Checks that the objective's examples can be made of what the source yields."""
    if isinstance(source, CorpusConfig | RecordsConfig):
        return  # They check it themselves.
    check(
        isinstance(examples, Examples) and not examples.changes_documents,
        f"{type(examples).__name__} changes documents before packing, and {type(source).__name__} has no documents: "
        "use a CorpusConfig or a RecordsConfig",
    )


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out sets of an experiment, with their weights in the mean over all sets."""

    sets: Mapping[str, tuple[Source, float]]
    """(source, weight) by name. Weights are those at the end of training, so that the mean has one definition."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics by which checkpoints can be compared. For all of them lower is better."""
        text = [name for name, (source, _) in self.sets.items() if isinstance(source, CorpusConfig)]
        names = [f"{name}/loss" for name in self.sets] + [f"{name}/bits_per_byte" for name in text]
        return tuple(dict.fromkeys([*names, f"{VALIDATION}/loss"]))

    def figures(self, found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The metrics `names`, from the metrics of each evaluated set. With several sets, 'validation/loss' is the
        weighted mean; it is left out unless all sets were evaluated."""
        flat = {f"{name}/{figure}": value for name, values in found.items() for figure, value in values.items()}
        if found.keys() == self.sets.keys():
            weights = {name: weight for name, (_, weight) in self.sets.items()}
            mean = sum(weight * found[name]["loss"] for name, weight in weights.items() if weight)
            flat[f"{VALIDATION}/loss"] = mean / sum(weights.values())
        return {name: flat[name] for name in self.names if name in flat}


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """One evaluation set, as batches of constant shape in a fixed order."""

    name: str
    """`validation`, or `validation/<source>` in a mixture."""
    batches: "Batches"
    text_bytes: int | None
    """UTF-8 bytes of the predicted text, over all processes. Bits per byte = sum of nats over all targets / ln 2 /
    text_bytes."""
    optimal_loss: float | None
    """For synthetic sources, the expected loss of a perfect model in nats per target."""


class Dataset:
    """Batches for training and evaluation. A batch is a dict of arrays [rows of this process, ...]."""

    def __init__(self, config: DataConfig, context: RowContext):
        self._config = config
        self._context = context
        self._source = config.source.build(context)
        self._train = self._source.train()

    @property
    def vocab_size(self) -> int:
        """All token ids are below this. The model's vocabulary must be at least this large."""
        return self._source.vocab_size

    def train_iterator(self, start_step: int = 0, host: int = 0, hosts: int = 1) -> "grain.DatasetIterator[Row]":
        """An infinite iterator over batches, from `start_step` on.

        Row r of step s is the same for any number of processes: process h reads rows [h B / hosts, (h + 1) B / hosts).
        `get_state()` returns a JSON dict. After `set_state` of it the iterator continues with the next batch.
        """
        import grain

        batches = self._batches(self._train, None, "train", host, hosts)
        options = grain.ReadOptions(
            num_threads=min(1, self._config.read_ahead), prefetch_buffer_size=self._config.read_ahead
        )
        iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
        grain.experimental.set_next_index(iterator, start_step)
        return iterator

    def evaluation(
        self, part: Part = "validation", host: int = 0, hosts: int = 1, max_bytes: int | None = None
    ) -> tuple[EvaluationSet, ...]:
        """The evaluation sets of `part`: one, or one for each source of a mixture.

        Every token is a target exactly once. The last batch is padded with rows of padding. With `max_bytes` a set is a
        sample of at most that many bytes (see `splits.Limited`), and `text_bytes` is that of the sample.
        """
        found = self._source.evaluation(part, max_bytes)
        return tuple(
            self._evaluation_set(f"{part}/{name}" if name else part, found[name], host, hosts) for name in found
        )

    def manifest(self) -> dict:
        """Identity of the data, for the run card. `digest` changes if and only if another entry does."""
        tokenizer = self._context.tokenizer
        content = {"tokenizer": tokenizer.digest if tokenizer else None, "source": self._source.manifest()}
        return {"digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16], **content}

    def record_counts(self) -> dict[str, int]:
        """Numbers of structured records, as `RowSource.record_counts`."""
        return self._source.record_counts()

    def card(self) -> dict:
        """The manifest and, for text, statistics that affect the run's metrics: `documents`, the duplicates within each
        set and between sets (see `census`); `duplicates_left_out`; and `empty_texts`, the number of documents without a
        character."""
        manifest = self.manifest()
        sets = self._source.document_sets()
        if not sets:
            return manifest
        counts = remembered(
            self._context.cache,
            [manifest["digest"], *sets],
            lambda: {
                "documents": census({name: fingerprints(documents) for name, documents in sets.items()}),
                "duplicates_left_out": self._source.duplicates_left_out(),
            },
        )
        return manifest | counts | {"empty_texts": self._source.empty_texts()}

    def _evaluation_set(self, name: str, found: EvaluationRows, host: int, hosts: int) -> EvaluationSet:
        batches = self._batches(found.rows, found.count, name, host, hosts)
        return EvaluationSet(name, batches, found.text_bytes, found.optimal_loss)

    def _batches(self, rows: Rows, count: int | None, name: str, host: int, hosts: int) -> "Batches":
        context = self._context
        prepared = _Prepared(
            rows, count, context.sequence_length + 1, context.examples, context.seed, f"transform {name}"
        )
        batch_size = self._config.batch_size
        length = _ENDLESS if count is None else -(-count // batch_size)
        return Batches(prepared, length, batch_size, host, hosts)


@dataclasses.dataclass(frozen=True)
class Batches(Sequence[Row]):
    """Batches of one process, by step. Each is a dict of arrays [batch_size / hosts, T + 1]."""

    rows: Rows
    length: int
    batch_size: int
    host: int
    hosts: int

    def __post_init__(self) -> None:
        check_divides(self.hosts, self.batch_size, "the number of hosts", "batch_size")
        check(0 <= self.host < self.hosts, f"host is {self.host}: it must be one of 0 to {self.hosts - 1}")

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, step: int) -> Row: ...
    @overload
    def __getitem__(self, step: slice) -> list[Row]: ...
    def __getitem__(self, step: int | slice) -> Row | list[Row]:
        if isinstance(step, slice):
            return [self[one] for one in range(*step.indices(self.length))]
        if not 0 <= step < self.length:
            raise IndexError(step)
        share = self.batch_size // self.hosts
        first = step * self.batch_size + self.host * share
        rows = [self.rows[index] for index in range(first, first + share)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """Rows after the objective's `Examples.row`. Indices after the end of a finite set are rows of padding."""

    rows: Rows
    count: int | None
    row_length: int
    examples: AnyExamples
    seed: int
    name: str

    def __getitem__(self, index: int) -> Row:
        past_end = self.count is not None and index >= self.count
        row = self.examples.padding(self.row_length) if past_end else self.rows[index]
        return self.examples.row(row, rng.generator(self.seed, self.name, index))
