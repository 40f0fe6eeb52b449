"""Documents after the objective's `Examples.document`, built one by one when a row needs them."""

import functools

import numpy as np

from llm_jax.core import rng
from llm_jax.core.checks import check
from llm_jax.data.cache import TokenDocuments
from llm_jax.data.examples import Examples, Row

_KEPT = 64
"""Number of built documents in the cache: the next row often begins with the rest of one of them."""


class BuiltDocuments:
    """Lengths of documents and ranges of their tokens and fields, for packing."""

    def __init__(self, documents: TokenDocuments, examples: Examples, seed: int):
        """
        Raises:
          ValueError: if `examples.lengths` does not return one length for each document.
        """
        self._documents, self._examples, self._seed = documents, examples, seed
        self._draws = rng.generator(seed, "document draws").random(len(documents))
        lengths = np.asarray(examples.lengths(documents.lengths, self._draws))
        check(
            lengths.shape == (len(documents),)
            and np.issubdtype(lengths.dtype, np.integer)
            and bool((lengths >= 0).all()),
            f"{type(examples).__name__}.lengths returned shape {lengths.shape} and type {lengths.dtype} for "
            f"{len(documents)} documents: return one number of tokens, 0 or more, for each",
        )
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._built = functools.lru_cache(maxsize=_KEPT)(self._build)

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [documents]."""
        return np.diff(self.offsets)

    @property
    def total(self) -> int:
        """Tokens in all documents."""
        return int(self.offsets[-1])

    def read(self, parts: np.ndarray, starts: np.ndarray, stops: np.ndarray, epoch: int) -> Row:
        """Same as `TokenDocuments.read`, with the objective's fields."""
        built = [self._built(int(part), epoch) for part in parts]
        names = ("tokens", *(field.name for field in self._examples.fields))
        ranges = list(zip(built, starts, stops, strict=True))
        return {name: np.concatenate([one[name][start:stop] for one, start, stop in ranges]) for name in names}

    def _build(self, index: int, epoch: int) -> Row:
        examples, length = self._examples, int(self.offsets[index + 1] - self.offsets[index])
        generator = rng.generator(self._seed, f"document of epoch {epoch}", index)
        built = examples.document(np.asarray(self._documents[index], np.int32), float(self._draws[index]), generator)
        wanted = {"tokens", *(field.name for field in examples.fields)}
        wrong = {name: np.shape(array) for name, array in built.items() if np.shape(array) != (length,)}
        check(
            built.keys() == wanted and not wrong,
            f"{type(examples).__name__}.document returned "
            f"{', '.join((f'{n} {np.shape(a)}' for n, a in built.items()))} for document {index}: return "
            f"{', '.join(sorted(wanted))}, each with the {length} tokens that `lengths` returned",
        )
        return built
