"""A mixture of sources in given proportions, which may change at given steps."""

import bisect
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import get_args

import numpy as np

from llm_jax.core import rng
from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.data.duplicates import DocumentSet
from llm_jax.data.row_source import EvaluationRows, Row, RowContext, Rows, RowSource, Source
from llm_jax.data.splits import Part


@configclass
class WeightedSource:
    """One source of a mixture."""

    name: str
    """Name of the source. Its evaluation set is `validation/<name>`."""
    source: Source
    weight: float = 1.0
    """Its share of the rows, relative to the sum of all weights."""
    changes: tuple[tuple[int, float], ...] = ()
    """(step, weight) pairs with ascending steps: the weight from that step on."""

    def __post_init__(self) -> None:
        check(bool(self.name) and "/" not in self.name, f"name is {self.name!r}: it must be a word without '/'")
        check(
            not isinstance(self.source, MixtureConfig),
            f"source of {self.name!r} is a mixture: add its sources to the outer mixture, with their own weights",
        )
        steps = [step for step, _ in self.changes]
        check(
            steps == sorted(set(steps)) and all(step > 0 for step in steps),
            f"changes of {self.name!r} is {self.changes}: its steps must be ascending and greater than 0",
        )
        for weight in (self.weight, *(weight for _, weight in self.changes)):
            check(
                math.isfinite(weight) and weight >= 0,
                f"{self.name!r} has weight {weight}: weights must be 0 or greater",
            )

    def weight_at(self, step: int) -> float:
        """The weight in force at `step`."""
        return [self.weight, *(weight for start, weight in self.changes if start <= step)][-1]


@configclass
class MixtureConfig(Source):
    """Rows of several sources. Proportions are exact in every block of `block` rows. The order in a block is random.

    Each source is read in its own order without gaps. After its last row its next epoch begins.
    """

    sources: tuple[WeightedSource, ...]
    block: int = 1000
    """Number of rows over which the proportions are exact. Weights are rounded to multiples of 1 / block."""

    def __post_init__(self) -> None:
        check_positive(block=self.block)
        names = [source.name for source in self.sources]
        check(len(names) > 0, "sources is empty: a mixture needs at least one source")
        check(len(set(names)) == len(names), f"sources are named {names}: each name must be used once")
        for step in self.steps():
            self._check_weights(step)

    def steps(self) -> tuple[int, ...]:
        """The steps at which proportions change, in ascending order, with 0 first."""
        return tuple(sorted({0, *(step for source in self.sources for step, _ in source.changes)}))

    def counts_at(self, step: int) -> np.ndarray:
        """int64 [sources]: rows of each source in a block, by the largest-remainder method."""
        weights = np.array([source.weight_at(step) for source in self.sources])
        exact = weights / weights.sum() * self.block
        counts = np.floor(exact).astype(np.int64)
        most_due = np.argsort(counts - exact, kind="stable")
        counts[most_due[: self.block - counts.sum()]] += 1
        return counts

    def build(self, context: RowContext) -> "MixtureSource":
        return MixtureSource(self, context)

    def _check_weights(self, step: int) -> None:
        weights = {source.name: source.weight_at(step) for source in self.sources}
        check(
            sum(weights.values()) > 0, f"from step {step} all weights are zero, {weights}: at least one must be greater"
        )
        for (name, weight), count in zip(weights.items(), self.counts_at(step), strict=True):
            check(
                weight == 0 or count > 0,
                f"from step {step} {name!r} has weight {weight} of {sum(weights.values())}, less than one row in a "
                f"block of {self.block}: increase block or the weight, or set the weight to 0",
            )


class MixtureSource(RowSource):
    """The sources of a mixture, each with its own seed."""

    def __init__(self, config: MixtureConfig, context: RowContext):
        self._config = config
        self._context = context
        self._sources: Mapping[str, RowSource] = {
            weighted.name: weighted.source.build(dataclasses.replace(context, seed=_seed(context.seed, weighted.name)))
            for weighted in config.sources
        }

    @property
    def vocab_size(self) -> int:
        return max(source.vocab_size for source in self._sources.values())

    def train(self) -> Rows:
        rows = [source.train() if name in self._trained else None for name, source in self._sources.items()]
        return MixedRows(self._config, rows, self._context.batch_size, self._context.seed)

    def evaluation(self, part: Part, max_bytes: int | None) -> dict[str, EvaluationRows]:
        return {name: source.evaluation(part, max_bytes)[""] for name, source in self._sources.items()}

    def manifest(self) -> dict:
        return {name: source.manifest() for name, source in self._sources.items()}

    def document_sets(self) -> dict[str, DocumentSet]:
        found = {name: source.document_sets() for name, source in self._sources.items()}
        return {
            f"{part}/{name}": sets[part]
            for part in get_args(Part)
            for name, sets in found.items()
            if part in sets and (part != "train" or name in self._trained)
        }

    def duplicates_left_out(self) -> int:
        return sum(source.duplicates_left_out() for source in self._sources.values())

    def record_counts(self) -> dict[str, int]:
        found = {name: source.record_counts() for name, source in self._sources.items()}
        return {f"{key}/{name}": count for name, counts in found.items() for key, count in counts.items()}

    def empty_texts(self) -> int:
        return sum(source.empty_texts() for source in self._sources.values())

    @property
    def _trained(self) -> set[str]:
        """Names of the sources with a positive weight at some step."""
        counts = np.sum([self._config.counts_at(step) for step in self._config.steps()], axis=0)
        return {name for name, count in zip(self._sources, counts, strict=True) if count}


@dataclasses.dataclass(frozen=True)
class _Phase:
    """A range of steps with constant proportions."""

    start: int
    """Its first row."""
    counts: np.ndarray
    """int64 [sources], rows of each source in a block."""
    before: np.ndarray
    """int64 [sources], rows of each source read before the phase."""


class MixedRows:
    """Rows of several sources. The source, and the index in it, are a pure function of (seed, index)."""

    def __init__(self, config: MixtureConfig, rows: list[Rows | None], batch_size: int, seed: int):
        self._rows = {source: found for source, found in enumerate(rows) if found is not None}
        self._sources = len(rows)
        self._block = config.block
        self._seed = seed
        self._layout = functools.lru_cache(maxsize=4)(self._make_layout)
        self._phases: list[_Phase] = []
        before = np.zeros(len(rows), np.int64)
        for step in config.steps():
            start = step * batch_size
            if self._phases:
                before = self._read_before(start)
            self._phases.append(_Phase(start, config.counts_at(step), before))

    def __getitem__(self, index: int) -> Row:
        source, place = self.locate(index)
        return self._rows[source][place]

    def locate(self, index: int) -> tuple[int, int]:
        """(source, index within the source) of row `index`."""
        number = bisect.bisect_right(self._phases, index, key=lambda phase: phase.start) - 1
        phase = self._phases[number]
        block, place = divmod(index - phase.start, self._block)
        sources, ranks = self._layout(number, block)
        source = int(sources[place])
        return source, int(phase.before[source] + block * phase.counts[source] + ranks[place])

    def _read_before(self, index: int) -> np.ndarray:
        """Rows of each source before row `index`, which must be in the last phase of `_phases` or directly after it."""
        number = len(self._phases) - 1
        phase = self._phases[number]
        blocks, rest = divmod(index - phase.start, self._block)
        sources, _ = self._layout(number, blocks)
        return phase.before + blocks * phase.counts + np.bincount(sources[:rest], minlength=self._sources)

    def _make_layout(self, phase: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each row of a block, its source and the number of earlier rows of that source: int64 [block] each."""
        counts = self._phases[phase].counts
        sources = np.repeat(np.arange(len(counts)), counts)
        sources = rng.generator(self._seed, f"mixture phase {phase}", block).permutation(sources)
        ranks = np.empty_like(sources)
        for source, count in enumerate(counts):
            ranks[sources == source] = np.arange(count)
        return sources, ranks


def _seed(seed: int, name: str) -> int:
    """A seed for one source, so that two equal sources do not yield the same rows."""
    return int(rng.generator(seed, f"mixture source {name}").integers(2**31))
