"""Markov chains: a synthetic source that resembles text and has an exact entropy."""

import bisect
import math

import numpy as np

from llm_jax.core import rng
from llm_jax.core.checks import check, check_positive, check_seed
from llm_jax.core.configclass import configclass
from llm_jax.data.synthetic import SyntheticConfig, Task

_MOST_PROBABILITIES = 2**18
_UNIFORM_SHARE = 0.01


@configclass
class MarkovConfig(SyntheticConfig):
    """A stationary chain: each token is drawn given the `order` tokens before it, from a fixed random table.

    Each row of the table is a symmetric Dirichlet draw, mixed with 1% of the uniform distribution. So every token can
    follow every context, and the stationary distribution is unique. An example fills a packed row.

    With x_0 ... x_T stationary and T >= order, the optimal loss per target is [H(x_0 ... x_T) - H(x_0)] / T, where
    H(x_0 ... x_T) = H(context) + (T + 1 - order) h: H(context) is the entropy of the stationary distribution of `order`
    tokens and h = H(next | context) the entropy rate. For order 1 this is h itself.
    """

    symbols: int = 32
    """Vocabulary of the chain."""
    order: int = 1
    """Number of context tokens on which the next token depends: 1 is a bigram model, 2 a trigram model."""
    concentration: float = 0.3
    """Concentration of the Dirichlet draws. Below 1, a few continuations have most of the probability."""
    table_seed: int = 0
    """Seed of the table. The rows are drawn from the table with the run's seed."""

    def __post_init__(self) -> None:
        check_positive(
            symbols=self.symbols,
            order=self.order,
            concentration=self.concentration,
            evaluation_rows=self.evaluation_rows,
        )
        check_seed(table_seed=self.table_seed)
        # Compared as logarithms, because the number of entries can be arbitrarily large.
        check(
            (self.order + 1) * math.log2(self.symbols) <= math.log2(_MOST_PROBABILITIES),
            f"symbols is {self.symbols} and order is {self.order}: the table has symbols^(order + 1) entries and may "
            f"have at most {_MOST_PROBABILITIES}; lower one of them",
        )

    def task(self, row_length: int) -> Task:
        return MarkovTask(self, row_length)


class MarkovTask:
    """Chains of one length, with the table's exact entropies.

    `table` is float64 [contexts, symbols], `stationary` float64 [contexts]; a context x_1 ... x_order is read as a
    number in base `symbols`, the latest token last.
    """

    def __init__(self, config: MarkovConfig, length: int):
        """Raises ValueError if a chain of `length` tokens does not contain a single context and its successor."""
        check(
            length > config.order,
            f"sequence_length is {length - 1}: it must be at least the order of the chain, {config.order}",
        )
        self.length = length
        self.vocab_size = config.symbols
        contexts = config.symbols**config.order
        generator = rng.generator(config.table_seed, "markov table")
        drawn = generator.dirichlet(np.full(config.symbols, config.concentration), size=contexts)
        self.table = (1 - _UNIFORM_SHARE) * drawn + _UNIFORM_SHARE / config.symbols
        self.stationary = _stationary(self.table)
        self.optimal_loss = self._optimal_loss(config.order)
        self._order = config.order
        self._first = np.cumsum(self.stationary)[:-1]
        # A list, because bisect is several times as fast on a list as on an array.
        self._cumulative = np.cumsum(self.table, axis=1)[:, :-1].tolist()

    @property
    def entropy_rate(self) -> float:
        """Entropy rate h, in nats per token."""
        return float(self.stationary @ _entropy(self.table))

    def sample(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Independent chains, int64 [count, length]."""
        return np.array([self._chain(generator) for _ in range(count)])

    def _chain(self, generator: np.random.Generator) -> list[int]:
        contexts, symbols = self.table.shape
        uniform = generator.random(self.length - self._order + 1)
        context = int(np.searchsorted(self._first, uniform[0], side="right"))
        tokens = [context // symbols**place % symbols for place in reversed(range(self._order))]
        for draw in uniform[1:].tolist():
            token = bisect.bisect_right(self._cumulative[context], draw)
            tokens.append(token)
            context = (context * symbols + token) % contexts
        return tokens

    def _optimal_loss(self, order: int) -> float:
        targets = self.length - 1
        first = self.stationary.reshape(self.table.shape[1], -1).sum(axis=1)
        total = _entropy(self.stationary) + (self.length - order) * self.entropy_rate
        return float(total - _entropy(first)) / targets


def _stationary(table: np.ndarray) -> np.ndarray:
    """The stationary distribution of contexts, by power iteration."""
    contexts, symbols = table.shape
    now = np.full(contexts, 1 / contexts)
    while True:
        # Drop the oldest token of the context, append the new one.
        joint = (now[:, None] * table).reshape(symbols, contexts)
        then = joint.sum(axis=0)
        if np.abs(then - now).sum() < 1e-13:
            return then / then.sum()
        now = then


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in nats, over the last axis."""
    return -(probabilities * np.log(probabilities)).sum(axis=-1)
