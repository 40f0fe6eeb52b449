"""Supervised fine-tuning on conversations: predict the tokens of selected messages.

Legend: B batch, T length.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.core.checks import check, did_you_mean
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Row, TokenField
from llm_jax.data.record_examples import RecordExamples, RecordSequence, StructuredRecord
from llm_jax.models.config import ModelConfig
from llm_jax.objectives import special_tokens
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.chat_template import END, ChatML, ChatTemplate, Part
from llm_jax.objectives.conversations import InstructionFields, Message, MessageFields
from llm_jax.objectives.objective import Needs
from llm_jax.objectives.record_fields import Unusable
from llm_jax.objectives.token_objective import TokenObjective
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class FineTuningConfig(TokenObjective):
    """Next-token prediction of the answers in conversations (Ouyang et al. 2022, arXiv:2203.02155, 3.5; the loss on
    answers alone as in Touvron et al. 2023, arXiv:2307.09288, 3.1).

    A target is a token of the content of a trained message, or what the template ends it with. Rows hold several whole
    conversations, each a segment of its own.
    """

    needs = Needs("causal")
    predicts_text = False

    records: MessageFields | InstructionFields = MessageFields()
    """Where a record holds its conversation."""
    template: ChatTemplate = ChatML()
    trained: tuple[str, ...] = ("assistant",)
    """Roles whose messages are predicted."""
    last_only: bool = False
    """Whether only the last of these messages is predicted, and the others are read."""

    def __post_init__(self):
        super().__post_init__()
        check(len(self.trained) > 0, "objective.trained is empty: name a role, such as 'assistant'")
        for role in self.trained:
            check(
                role in self.template.roles,
                f"objective.trained has the role {role!r}, which {type(self.template).__name__} does not know"
                f"{did_you_mean(role, self.template.roles)}; its roles are {', '.join(self.template.roles)}",
            )

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return self.template.special_tokens

    def texts(self, document: str) -> Iterable[str]:
        """All texts of a conversation, with those of the template."""
        fields = json.loads(document)
        try:
            parts = self.parts(StructuredRecord("", fields if isinstance(fields, Mapping) else {}))
        except Unusable:
            return
        yield from (part for part, _ in parts if isinstance(part, str))

    def parts(self, record: StructuredRecord) -> list[tuple[Part, bool]]:
        """The conversation of a record as texts and special tokens, and whether each of them is predicted.

        Raises:
          Unusable: for a role that the template does not know, and if no message is predicted.
        """
        messages = self.records.conversation(record)
        predicted = [number for number, message in enumerate(messages) if message.role in self.trained]
        if not predicted:
            raise Unusable(f"no message has a role of objective.trained, {', '.join(self.trained)}")
        predicted = predicted[-1:] if self.last_only else predicted
        found: list[tuple[Part, bool]] = []
        for number, message in enumerate(messages):
            self._check(number, message, number in predicted)
            turn = self.template.turn(message.role, number == 0)
            found += [(part, False) for part in turn.before]
            found += [(part, number in predicted) for part in (message.content, *turn.end)]
            found += [(part, False) for part in turn.after]
        return found

    def _check(self, number: int, message: Message, predicted: bool) -> None:
        roles = self.template.roles
        if message.role not in roles:
            raise Unusable(
                f"message {number} has the role {message.role!r}, which {type(self.template).__name__} does not know"
                f"{did_you_mean(message.role, roles)}; its roles are {', '.join(roles)}"
            )
        if predicted and not message.content.strip():
            raise Unusable(f"message {number} of role {message.role!r} is to be predicted and is empty")

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "FineTuningExamples":
        """
        Raises:
          ValueError: if the vocabulary has no room for the template's special tokens.
        """
        ids = special_tokens.ids(self.template.special_tokens, tokenizer, model.vocab_size or 0)
        return FineTuningExamples(self, ids, sequence_length + 1)

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        batch = Batch.next_tokens(rows)
        weights_BT = batch.loss_weights_BT * rows["trained"][:, 1:].astype(np.float32)
        return Batch(batch.inputs, batch.targets_BT, weights_BT)


class FineTuningExamples(RecordExamples):
    """Rows of `tokens` and `trained`, 1 for a token that is predicted."""

    parts = ("tokens", "trained")

    def __init__(self, config: FineTuningConfig, ids: Mapping[str, int], length: int):
        """
        Args:
          ids: of the special tokens of the template.
          length: of a row, one more than the model reads.
        """
        self._config, self._ids = config, ids
        self.sequences = (RecordSequence(length, fields=(TokenField("trained"),)),)

    @property
    def identity(self) -> str:
        config, template = self._config, self._config.template
        # What a template of the user's does is not in its fields.
        turns = [(role, template.turn(role, first)) for role in template.roles for first in (True, False)]
        settings = (config.records, template.bos, turns, config.trained, config.last_only)
        # The length decides which conversations have a target in a row.
        return repr(("fine-tuning", *settings, sorted(self._ids.items()), self.sequences[0].length))

    def encode(self, records: Sequence[StructuredRecord], tokenizer: Tokenizer) -> list[tuple[np.ndarray, ...] | str]:
        read = [self._read(record) for record in records]
        texts = [part for one in read if not isinstance(one, str) for part, _ in one if isinstance(part, str)]
        ids = iter(tokenizer.encode_batch(texts))
        special = {END.name: tokenizer.eos_id} | dict(self._ids)

        def tokens(part: Part) -> np.ndarray:
            return next(ids) if isinstance(part, str) else np.array([special[part.name]])

        begin = [tokenizer.bos_id] if self._config.template.bos else []
        return [one if isinstance(one, str) else self._joined(begin, [(tokens(p), y) for p, y in one]) for one in read]

    def _read(self, record: StructuredRecord) -> list[tuple[Part, bool]] | str:
        try:
            return self._config.parts(record)
        except Unusable as reason:
            return str(reason)

    def _joined(self, begin: list[int], parts: list[tuple[np.ndarray, bool]]) -> tuple[np.ndarray, ...] | str:
        tokens = np.concatenate([begin, *(ids for ids, _ in parts)]).astype(np.int64)
        predicted = [len(begin) * [False], *(len(ids) * [trained] for ids, trained in parts)]
        trained = np.concatenate(predicted).astype(np.int64)
        length = self.sequences[0].length
        # The first token of a row has no token before it that predicts it.
        if not trained[1:length].any():
            first = f"token {np.argmax(trained) + 1} is the first that is predicted" if trained.any() else "none is"
            return f"of {len(tokens)} tokens {first}, and a row holds {length}: raise data.sequence_length"
        return tokens, trained

    def lengths(self, parts: np.ndarray) -> np.ndarray:
        return parts[:, :1]

    def document(self, parts: Row, generator: np.random.Generator) -> Row:
        return {name: array.astype(np.int32) for name, array in parts.items()}

    def truncated(self, parts: Row) -> Row:
        """The beginning of the conversation."""
        return {name: array[: self.sequences[0].length] for name, array in parts.items()}
