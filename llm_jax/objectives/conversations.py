"""Which fields of a record hold a conversation."""

from collections.abc import Mapping
from typing import NamedTuple

from llm_jax.core.checks import shortened
from llm_jax.core.configclass import configclass
from llm_jax.data.record_examples import StructuredRecord
from llm_jax.objectives import record_fields
from llm_jax.objectives.record_fields import Unusable


class Message(NamedTuple):
    """A message of a conversation."""

    role: str
    content: str


@configclass
class MessageFields:
    """A list of messages, each an object with a role and a content."""

    messages: str = "messages"
    """Field of a record with the list."""
    role: str = "role"
    """Field of a message."""
    content: str = "content"
    """Field of a message."""

    def conversation(self, record: StructuredRecord) -> list[Message]:
        """The messages of a record.

        Raises:
          Unusable: if there are none, or one is of another form.
        """
        return [self._message(number, one) for number, one in enumerate(record_fields.items(record, self.messages))]

    def _message(self, number: int, message: object) -> Message:
        if not isinstance(message, Mapping) or not {self.role, self.content} <= set(message):
            raise Unusable(
                f"message {number} is {shortened(message)}, not an object with {self.role!r} and {self.content!r}"
            )
        role, content = message[self.role], message[self.content]
        if not isinstance(role, str) or not isinstance(content, str):
            raise Unusable(f"message {number} has role {shortened(role)} and content {shortened(content)}: not texts")
        return Message(role, content)


@configclass
class InstructionFields:
    """An instruction and its answer, as in Alpaca: a message of the user and one of the assistant."""

    instruction: str = "instruction"
    """Field of a record."""
    input: str | None = "input"
    """Field with what the instruction refers to; it may be missing or empty. None: there is none."""
    output: str = "output"
    """Field with the answer."""
    before_input: str = "\n\n### Input:\n"
    """Stands between instruction and input."""

    def conversation(self, record: StructuredRecord) -> list[Message]:
        """Both messages of a record.

        Raises:
          Unusable: if there is no instruction or no answer.
        """
        question, answer = (record_fields.text(record, field) for field in (self.instruction, self.output))
        given = record.fields.get(self.input) if self.input is not None else None
        if given is not None and not isinstance(given, str):
            raise Unusable(f"field {self.input!r} holds a {type(given).__name__}, not text")
        if given:
            question += self.before_input + given
        return [Message("user", question), Message("assistant", answer)]
