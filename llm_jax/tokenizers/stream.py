"""Text of ids that arrive one at a time, as when a model writes."""

from collections.abc import Callable, Iterable

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StreamDecoder:
    """Text of a growing sequence of ids, in parts that are never taken back.

    The parts add up to what the whole sequence decodes to. A character split over several tokens appears once it is
    complete. Each push decodes only the tokens since the one before the last visible text, so that a long stream
    costs no more per token than a short one.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], is_undecided: Callable[[int], bool], prompt: Iterable[int] = ()
    ):
        self._decode = decode
        self._is_undecided = is_undecided
        # A token's text depends on what precedes it (a first space may be dropped), so that the last tokens whose
        # text has been shown are decoded again with the pending ones.
        self._context: list[int] = []
        self._shown = ""
        self._pending: list[int] = []
        for token_id in prompt:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that became certain with this id; often empty."""
        self._pending.append(int(token_id))
        if self._is_undecided(token_id):
            return ""
        text = self._decode(self._context + self._pending)
        return "" if text.endswith(_REPLACEMENT) else self._show(text)

    def flush(self) -> str:
        """The text held back so far; call it once, after the last push."""
        return self._show(self._decode(self._context + self._pending))

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :]
        # Tokens that are silent by themselves are no context: the spaces in front of the next would be dropped again.
        alone = self._decode(self._pending)
        if alone:
            self._context, self._shown = self._pending, alone
        else:
            self._context, self._shown = self._context + self._pending, text
        self._pending = []
        return new
