"""A corpus: text, its split into parts, and the packing of its tokens into rows."""

import functools
from collections.abc import Mapping

import numpy as np

from llm_jax.core.checks import check, check_one_of, given
from llm_jax.core.configclass import configclass
from llm_jax.data.built_documents import BuiltDocuments
from llm_jax.data.cache import TokenDocuments, tokenized
from llm_jax.data.duplicates import Distinct, DocumentSet
from llm_jax.data.encoding import TextEncoding
from llm_jax.data.packing import Documents, PackedConfig, Packing
from llm_jax.data.read_source import Duplicates, ReadSource
from llm_jax.data.row_source import EvaluationRows, RowContext, Rows, RowSource
from llm_jax.data.sources import Reader, TextSource
from llm_jax.data.splits import ContentSplit, Limited, Part, SeparateSources, Split


@configclass
class CorpusConfig(ReadSource):
    """Text, tokenised by the experiment's tokenizer and packed into rows. A document is [bos] + ids + [eos]."""

    source: Reader
    split: Split = ContentSplit()
    packing: Packing = PackedConfig()
    bos: bool = True
    """Whether documents begin with the tokenizer's bos. Without bos a document's first token is never a target."""
    eos: bool = True
    """Whether documents end with the tokenizer's eos. It is a target like any other token."""
    duplicates: Duplicates = "keep"

    def __post_init__(self) -> None:
        check_one_of("duplicates", self.duplicates, ("keep", "skip"))

    def build(self, context: RowContext) -> "Corpus":
        return Corpus(self, context)


class Corpus(RowSource):
    """Rows from the parts of a corpus. A part is tokenised when it is first needed."""

    def __init__(self, config: CorpusConfig, context: RowContext):
        """Raises ValueError if there is no tokenizer."""
        needs = f"{config.source} is text: the experiment needs a tokenizer to cut it"
        self._tokenizer = given(context.tokenizer, needs)
        self._config = config
        self._context, self._examples = context, context.text_examples
        self._source = config.source.build()

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def train(self) -> Rows:
        """Raises ValueError if the training part is smaller than one batch."""
        context, documents = self._context, self._built(self._tokenized(self._text("train")))
        needed = context.batch_size * context.sequence_length + 1
        check(
            documents.total >= needed,
            f"the {self._text('train')} has {documents.total} tokens in {len(documents)} documents: one batch "
            f"requires batch_size x sequence_length + 1 = {context.batch_size} x {context.sequence_length} + 1 = "
            f"{needed}; add text, or lower batch_size or sequence_length",
        )
        return self._config.packing.train(documents, context.sequence_length, context.seed, self._examples.fields)

    def evaluation(self, part: Part, max_bytes: int | None) -> dict[str, EvaluationRows]:
        text = self._text(part)
        documents = self._tokenized(text if max_bytes is None else Limited(text, max_bytes))
        context, built = self._context, self._built(documents)
        rows = self._config.packing.evaluation(built, context.sequence_length, self._examples.fields)
        if self._examples.changes_documents:
            return {"": EvaluationRows(rows, rows.rows_per_epoch, text_bytes=None, optimal_loss=None)}
        # With bos, only bos is never a target, and it has no bytes.
        given = 0 if self._config.bos else self._bytes_of_first(rows.unpredicted)
        return {"": EvaluationRows(rows, rows.rows_per_epoch, documents.text_bytes - given, optimal_loss=None)}

    def manifest(self) -> dict:
        parts = {part: self._text(part) for part in self._config.split.parts()}
        return {part: _card(text, self._tokenized(text)) for part, text in parts.items()}

    def document_sets(self) -> dict[str, DocumentSet]:
        return {
            part: DocumentSet(functools.partial(self._tokenized, self._text(part)), self._config.bos, self._config.eos)
            for part in self._config.split.parts()
        }

    def duplicates_left_out(self) -> int:
        if self._config.duplicates == "keep":
            return 0
        if isinstance(self._config.split, SeparateSources):
            texts = map(self._text, self._config.split.parts())
            return sum(text.left_out for text in texts if isinstance(text, Distinct))
        return Distinct(self._source).left_out

    def empty_texts(self) -> int:
        split = self._config.split
        # All parts of one source report the count of the whole source.
        parts = split.parts() if isinstance(split, SeparateSources) else ("train",)
        return sum(self._text(part).empty for part in parts)

    def _built(self, documents: TokenDocuments) -> Documents:
        """The documents, changed by the objective's `Examples` if it changes any."""
        if not self._examples.changes_documents:
            return documents
        return BuiltDocuments(documents, self._examples, self._context.seed)

    def _bytes_of_first(self, ids: np.ndarray) -> int:
        """UTF-8 bytes of the ids at the beginning of documents; eos has none."""
        found, counts = np.unique(ids, return_counts=True)
        return sum(self._tokenizer.first_bytes(int(i)) * int(n) for i, n in zip(found, counts, strict=True))

    def _text(self, part: Part) -> TextSource:
        return self._config.text_of(self._source, part)

    def _tokenized(self, text: TextSource) -> TokenDocuments:
        encoding = TextEncoding(self._tokenizer, self._config.bos, self._config.eos)
        return tokenized(text, encoding, self._context.cache)


def _card(text: TextSource, documents: TokenDocuments) -> Mapping[str, str | int]:
    return {
        "text_digest": text.digest,
        "invalid_utf8": len(text.invalid),
        "documents": len(documents),
        "tokens": documents.total,
        "text_bytes": documents.text_bytes,
        "tokens_digest": documents.digest,
    }
