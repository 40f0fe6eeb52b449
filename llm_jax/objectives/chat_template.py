"""How a conversation becomes one sequence: what stands before and after the content of each message."""

import abc
from typing import NamedTuple

from llm_jax.core.configclass import configclass


class SpecialToken(NamedTuple):
    """A token that is no text."""

    name: str


END = SpecialToken("<eos>")
"""The tokenizer's end of a document, whatever its name there."""

Part = str | SpecialToken


class Turn(NamedTuple):
    """What a message consists of, beside its content."""

    before: tuple[Part, ...]
    """Tells the role. A model that answers is given it."""
    end: tuple[Part, ...] = ()
    """Follows the content, and is generated with it."""
    after: tuple[Part, ...] = ()
    """Separates it from the next message. A model that answers is given it."""


@configclass
class ChatTemplate(abc.ABC):
    """The form of a conversation. Derive a configclass from it to use your own.

    Each text, such as the content of a message, is tokenised by itself, so that no token belongs to two of them: what a
    model is given ends where what it generates begins, in training as in use.
    """

    bos: bool = True
    """Whether a conversation begins with bos."""

    @property
    @abc.abstractmethod
    def roles(self) -> tuple[str, ...]:
        """The roles that a message can have."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Names of the special tokens besides bos and `END`."""
        return ()

    @abc.abstractmethod
    def turn(self, role: str, first: bool) -> Turn:
        """The form of a message with one of `roles`.

        Args:
          first: whether it is the first of its conversation.
        """


@configclass
class ChatML(ChatTemplate):
    """<|im_start|>role, a line end, content, <|im_end|>, a line end (OpenAI 2023, chatml.md in
    github.com/openai/openai-python before version 1; Qwen and SmolLM use it)."""

    names: tuple[str, ...] = ("system", "user", "assistant", "tool")
    """The roles."""

    @property
    def roles(self) -> tuple[str, ...]:
        return self.names

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return ("<|im_start|>", "<|im_end|>")

    def turn(self, role: str, first: bool) -> Turn:
        start, end = map(SpecialToken, self.special_tokens)
        return Turn((start, f"{role}\n"), (end,), ("\n",))


@configclass
class PlainTemplate(ChatTemplate):
    """Headings of text and no special tokens, as in Alpaca (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca,
    train.py). An answer ends with the tokenizer's eos."""

    preamble: str = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    """Stands first, in place of the message of a system; empty: nothing does. Alpaca has another one for instructions
    with an input."""
    user: str = "### Instruction:\n"
    """Before a message of the user."""
    assistant: str = "### Response:"
    """Before an answer."""
    separator: str = "\n\n"
    """After the preamble and after every message that is no answer."""

    @property
    def roles(self) -> tuple[str, ...]:
        return ("system", "user", "assistant")

    def turn(self, role: str, first: bool) -> Turn:
        preamble = (self.preamble + self.separator,) if first and self.preamble and role != "system" else ()
        if role == "system":
            return Turn((), (), (self.separator,))
        if role == "user":
            return Turn((*preamble, self.user), (), (self.separator,))
        return Turn((*preamble, self.assistant), (END,))
