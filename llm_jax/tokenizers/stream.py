"""Incremental decoding of ids that arrive one at a time, as in generation."""

from collections.abc import Callable, Iterable

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StreamDecoder:
    """Text of a growing sequence of ids, in parts that never change afterwards.

    The concatenated parts equal the decoded sequence. A character that is split over several tokens appears when it is
    complete. Each push decodes only the last tokens with visible text and the pending ones, so that the cost per token
    does not grow with the length.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], is_undecided: Callable[[int], bool], prompt: Iterable[int] = ()
    ):
        self._decode = decode
        self._is_undecided = is_undecided
        # A token's text depends on the preceding tokens (a first space may be dropped). So the last tokens whose text
        # has been shown are decoded again with the pending ones.
        self._context: list[int] = []
        self._shown = ""
        self._pending: list[int] = []
        for token_id in prompt:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that is determined by this id and the pending ones. Often empty."""
        self._pending.append(int(token_id))
        if self._is_undecided(token_id):
            return ""
        text = self._decode(self._context + self._pending)
        return "" if text.endswith(_REPLACEMENT) else self._show(text)

    def flush(self) -> str:
        """The pending text. Call it once, after the last push."""
        return self._show(self._decode(self._context + self._pending))

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :]
        # Tokens without text of their own do not suffice as context: the next first space would be dropped again.
        alone = self._decode(self._pending)
        if alone:
            self._context, self._shown = self._pending, alone
        else:
            self._context, self._shown = self._context + self._pending, text
        self._pending = []
        return new
