"""The small files that tokenizers are made of."""

import os
import tempfile
from pathlib import Path

from llm_jax.core.checks import check


def read_file(path: str, what: str) -> bytes:
    """Content of a file that a config names.

    Raises:
      ValueError: if it is missing, unreadable or empty.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{what} {path!r} cannot be read ({error.strerror}): check the path in the config") from error
    check(bool(content), f"{what} {path!r} is empty: check the path in the config")
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old content or the new, never a part; several processes may write the same file."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".partial", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
