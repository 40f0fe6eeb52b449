"""What sources that read documents have in common: their parts, without duplicates."""

from typing import Literal

from llm_jax.data.duplicates import Distinct
from llm_jax.data.row_source import Source
from llm_jax.data.sources import Reader, TextSource
from llm_jax.data.splits import Part, SeparateSources, Split

Duplicates = Literal["keep", "skip"]
"""Whether to keep documents whose text is that of an earlier document. skip: they are removed before the split, and
counted. If parts have sources of their own, texts of a held-out part are removed from the training text."""


class ReadSource(Source):
    """A source of documents from a reader. Configs derive from it and have these fields."""

    source: Reader
    split: Split
    duplicates: Duplicates

    def text(self, part: Part) -> TextSource:
        """The documents of `part`, before tokenising."""
        return self.text_of(self.source.build(), part)

    def text_of(self, source: TextSource, part: Part) -> TextSource:
        """The documents of `part`, where `source` is the built `self.source`."""
        if self.duplicates == "keep":
            return self.split.part(source, part)
        if not isinstance(self.split, SeparateSources):
            return self.split.part(Distinct(source), part)
        parts = self.split.parts()
        later = parts[parts.index(part) + 1 :]
        return Distinct(self.split.part(source, part), [self.split.part(source, held_out) for held_out in later])
