"""The content of a checkpoint except its arrays: one JSON text with a checksum."""

import base64
import dataclasses
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any, Self

from llm_jax.checkpoints.digest import digests
from llm_jax.core.trees import named_leaves

_BYTES = "__bytes__"


class Damaged(Exception):
    """Raised if a checkpoint is incomplete or differs from what was saved."""


@dataclasses.dataclass(frozen=True)
class SavedLeaf:
    """Shape, dtype name and content digest of one array of the state."""

    shape: tuple[int, ...]
    dtype: str
    digest: int


@dataclasses.dataclass(frozen=True)
class Identity:
    """The run to which a checkpoint belongs, independent of the other files of the run directory."""

    experiment: str
    """Flat text of the experiment."""
    tokenizer: str
    """Digest of the tokenizer; 'none' without one."""
    data: str | None = None
    """Digest of the data; None in checkpoints of earlier versions, which did not store it."""
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Origin of the weights, as JSON: the commit, and the run and step of a branch."""
    code: str | None = None
    """Digest of the user's files that define the experiment; None in checkpoints of earlier versions."""


@dataclasses.dataclass(frozen=True)
class CheckpointRecord:
    """The content of a checkpoint except the arrays, with descriptions of the arrays."""

    step: int
    run: Identity
    data: dict[str, Any]
    """State of the data iterator."""
    loop: dict[str, Any]
    metrics: dict[str, float]
    """Held-out metrics at this step by name, such as 'validation/loss'; empty if the step was not evaluated."""
    leaves: dict[str, SavedLeaf]

    def to_json(self) -> dict[str, Any]:
        """A JSON object, which `from_json` reads and checks.

        Raises:
          ValueError: if `data` or `loop` hold anything but dicts with str keys, lists, str, int, float, bool, None and
            bytes.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"run": dataclasses.asdict(self.run), "metrics": dict(self.metrics)}
        fields |= {"data": _encode(self.data, "data"), "loop": _encode(self.loop, "loop")}
        fields["leaves"] = {name: [list(leaf.shape), leaf.dtype, leaf.digest] for name, leaf in self.leaves.items()}
        text = json.dumps(fields)
        return {"crc32": zlib.crc32(text.encode()), "text": text}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`.

        Raises:
          Damaged: if the checksum does not match the text.
        """
        if zlib.crc32(value["text"].encode()) != value["crc32"]:
            raise Damaged("its record does not match its checksum")
        fields = _present(json.loads(value["text"]))
        leaves = {
            name: SavedLeaf(tuple(shape), dtype, digest) for name, (shape, dtype, digest) in fields["leaves"].items()
        }
        decoded = {name: _decode(fields[name]) for name in ("data", "loop")}
        return cls(**fields | decoded | {"run": Identity(**fields["run"]), "leaves": leaves})


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record, converted from the format of earlier versions if necessary. These stored one loss, whose
    name is in the experiment, and no digest of the data."""
    if "run" in fields:
        return fields
    fields = dict(fields)
    experiment, loss = fields.pop("experiment"), fields.pop("loss")
    named = re.search(r'^checkpoint\.best_metric = "(.*)"$', experiment, re.MULTILINE)
    fields["metrics"] = {} if loss is None else {named[1] if named else "validation/loss": loss}
    return fields | {"run": {"experiment": experiment, "tokenizer": fields.pop("tokenizer_digest")}}


def describe(state: Any) -> dict[str, SavedLeaf]:
    """Shape, dtype and digest of every array of `state` by path name. Waits until they are computed."""
    found = digests(state)
    return {name: SavedLeaf(tuple(leaf.shape), str(leaf.dtype), found[name]) for name, leaf in named_leaves(state)}


def root_cause(error: BaseException) -> str:
    """One line about the root cause of an error. Orbax and tensorstore embed it in long descriptions, of which the
    beginning and the end are kept."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split(" [tensorstore_spec=")[0].split())
    return f"{type(error).__name__}: " + (text if len(text) < 240 else f"{text[:120]} ... {text[-100:]}")


def _encode(value: Any, path: str) -> Any:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _encode(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_encode(item, f"{path}.{index}") for index, item in enumerate(value)]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise ValueError(
        f"{path} is a {type(value).__name__}: besides arrays a checkpoint holds dicts with str keys, lists, str, int, "
        "float, bool, None and bytes; convert it first"
    )


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_BYTES}:
            return base64.b64decode(value[_BYTES])
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value
