"""Synthetic sources with a known optimal loss, against which a trained model can be checked.

A task draws examples of a fixed length. A row holds as many whole examples as fit, each a segment of its own, followed
by padding. The optimal loss is the entropy of an example given its first token (an input and no target), divided by
its number of targets. By the chain rule no model has a lower expected loss, and a model of the exact distribution
reaches it.
"""

import abc
import math
from typing import Protocol

import numpy as np

from llm_jax.core import config_text, rng
from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import padding_row
from llm_jax.data.row_source import EvaluationRows, Row, RowContext, Rows, RowSource, Source
from llm_jax.data.splits import Part


class Task(Protocol):
    """A distribution over examples."""

    length: int
    """Tokens per example."""
    vocab_size: int
    optimal_loss: float
    """Nats per target. Each of the `length` - 1 tokens after the first is a target."""

    def sample(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Independent examples, integers [count, length]."""
        ...


@configclass(kw_only=True)
class SyntheticConfig(Source):
    """Base of all task configs. Training, validation and test parts are independent draws."""

    evaluation_rows: int = 64
    """Rows in an evaluation set."""

    @abc.abstractmethod
    def task(self, row_length: int) -> Task:
        """The task. A row has `row_length` tokens for its examples."""

    def build(self, context: RowContext) -> "SyntheticSource":
        return SyntheticSource(self, context)


@configclass
class CopyConfig(SyntheticConfig):
    """A random string, a separator, and the same string again. Tests recall over `length` tokens.

    Targets: length - 1 uniform symbols at ln(symbols) nats each; the separator and the copy are deterministic. Optimal
    loss per target: (length - 1) ln(symbols) / (2 length).
    """

    symbols: int = 16
    """Alphabet size, without the separator."""
    length: int = 16
    """Length of the string."""

    def __post_init__(self) -> None:
        check_positive(symbols=self.symbols, length=self.length, evaluation_rows=self.evaluation_rows)

    def task(self, row_length: int) -> Task:
        return CopyTask(self)


class CopyTask:
    """The `Task` of `CopyConfig`."""

    def __init__(self, config: CopyConfig):
        self._config = config
        self.length = 2 * config.length + 1
        self.vocab_size = config.symbols + 1
        self.optimal_loss = (config.length - 1) * math.log(config.symbols) / (2 * config.length)

    def sample(self, generator: np.random.Generator, count: int) -> np.ndarray:
        strings = generator.integers(self._config.symbols, size=(count, self._config.length))
        separators = np.full((count, 1), self._config.symbols)
        return np.concatenate([strings, separators, strings], axis=1)


@configclass
class ModularAdditionConfig(SyntheticConfig):
    """a, b, =, (a + b) mod modulus (Power et al. 2022, https://arxiv.org/abs/2201.02177).

    Targets: b at ln(modulus) nats; = and the sum are deterministic. Optimal loss per target: ln(modulus) / 3.
    """

    modulus: int = 97

    def __post_init__(self) -> None:
        check_positive(modulus=self.modulus, evaluation_rows=self.evaluation_rows)

    def task(self, row_length: int) -> Task:
        return ModularAdditionTask(self)


class ModularAdditionTask:
    """The `Task` of `ModularAdditionConfig`."""

    length = 4

    def __init__(self, config: ModularAdditionConfig):
        self._modulus = config.modulus
        self.vocab_size = config.modulus + 1
        self.optimal_loss = math.log(config.modulus) / 3

    def sample(self, generator: np.random.Generator, count: int) -> np.ndarray:
        a, b = generator.integers(self._modulus, size=(2, count))
        return np.stack([a, b, np.full(count, self._modulus), (a + b) % self._modulus], axis=1)


@configclass
class InductionConfig(SyntheticConfig):
    """Key-value pairs, then some of the keys again, each followed by its value: the task of induction heads
    (Olsson et al. 2022, https://arxiv.org/abs/2209.11895; as associative recall in Ba et al. 2016,
    https://arxiv.org/abs/1610.06258).

    Keys are distinct, values need not be. Targets, with K keys, V values, n pairs, m queries: the keys after the first
    at ln(K - 1) + ... + ln(K - n + 1) nats; n values at ln V; queries without repetition at ln n + ... + ln(n - m + 1);
    the answers are deterministic. The sum is divided by 2 n + 2 m - 1 targets.
    """

    keys: int = 32
    """Key alphabet: tokens 0 to keys - 1."""
    values: int = 32
    """Value alphabet: the tokens after the keys."""
    pairs: int = 8
    queries: int = 8
    """Number of pairs that are queried."""

    def __post_init__(self) -> None:
        check_positive(keys=self.keys, values=self.values, pairs=self.pairs, evaluation_rows=self.evaluation_rows)
        check(
            0 < self.queries <= self.pairs <= self.keys,
            f"queries is {self.queries}, pairs {self.pairs}, keys {self.keys}: they must satisfy "
            "0 < queries <= pairs <= keys",
        )

    def task(self, row_length: int) -> Task:
        return InductionTask(self)


class InductionTask:
    """The `Task` of `InductionConfig`."""

    def __init__(self, config: InductionConfig):
        self._config = config
        self.length = 2 * (config.pairs + config.queries)
        self.vocab_size = config.keys + config.values
        nats = sum(math.log(config.keys - drawn) for drawn in range(1, config.pairs))
        nats += config.pairs * math.log(config.values)
        nats += sum(math.log(config.pairs - drawn) for drawn in range(config.queries))
        self.optimal_loss = nats / (self.length - 1)

    def sample(self, generator: np.random.Generator, count: int) -> np.ndarray:
        config = self._config
        keys = _permutations(generator, count, config.keys)[:, : config.pairs]
        values = config.keys + generator.integers(config.values, size=(count, config.pairs))
        pairs = np.stack([keys, values], axis=2)
        asked = _permutations(generator, count, config.pairs)[:, : config.queries]
        queries = np.take_along_axis(pairs, asked[:, :, None], axis=1)
        return np.concatenate([pairs, queries], axis=1).reshape(count, self.length)


class SyntheticSource(RowSource):
    """Rows of one task."""

    def __init__(self, config: SyntheticConfig, context: RowContext):
        """Raises ValueError if an example is longer than a row, or its tokens exceed the vocabulary."""
        self._config = config
        self._context = context
        self._task = task = config.task(context.sequence_length + 1)
        check(
            task.length <= context.sequence_length + 1,
            f"sequence_length is {context.sequence_length}, and one example of {type(config).__name__} has "
            f"{task.length} tokens: set sequence_length to at least {task.length - 1}, or shorten the examples",
        )
        check(
            context.tokenizer is None or task.vocab_size <= context.tokenizer.vocab_size,
            f"{type(config).__name__} uses {task.vocab_size} tokens, more than the tokenizer has: use fewer symbols or "
            "a tokenizer with a larger vocabulary",
        )

    @property
    def vocab_size(self) -> int:
        return self._task.vocab_size

    def train(self) -> Rows:
        return self._rows("train")

    def evaluation(self, part: Part, max_bytes: int | None) -> dict[str, EvaluationRows]:
        count = self._config.evaluation_rows
        return {"": EvaluationRows(self._rows(part), count, text_bytes=None, optimal_loss=self._task.optimal_loss)}

    def manifest(self) -> dict:
        return {
            "task": type(self._config).__name__,
            "config_digest": config_text.digest(self._config),
            "optimal_loss": self._task.optimal_loss,
        }

    def _rows(self, part: Part) -> Rows:
        return SyntheticRows(self._task, part, self._context.sequence_length + 1, self._context.seed)


class SyntheticRows:
    """Rows of whole examples, each a pure function of (seed, part, index)."""

    def __init__(self, task: Task, part: Part, length: int, seed: int):
        self._task = task
        self._name = f"synthetic {part}"
        self._length = length
        self._seed = seed

    def __getitem__(self, index: int) -> Row:
        generator = rng.generator(self._seed, self._name, index)
        size, examples = self._task.length, self._length // self._task.length
        row = padding_row(self._length)
        used = size * examples
        row["tokens"][:used] = self._task.sample(generator, examples).ravel()
        row["segment_ids"][:used] = np.repeat(np.arange(1, examples + 1), size)
        row["positions"][:used] = np.tile(np.arange(size), examples)
        return row


def _permutations(generator: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Independent permutations of 0 ... size - 1, integers [count, size]."""
    return generator.permuted(np.tile(np.arange(size), (count, 1)), axis=1)
