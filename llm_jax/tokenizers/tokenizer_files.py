"""Reads the files of tokenizers."""

from llm_jax.core import paths
from llm_jax.core.checks import check


def read_file(path: str, what: str) -> bytes:
    """Content of a file in a config.

    Raises:
      ValueError: if it is missing, unreadable or empty.
    """
    try:
        content = paths.at(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{what} {path!r} cannot be read ({error.strerror}): check the path in the config") from error
    check(bool(content), f"{what} {path!r} is empty: check the path in the config")
    return content
