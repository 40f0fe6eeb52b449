"""Silences messages of orbax about errors that it also raises as exceptions."""

import functools
import importlib.metadata
import logging
import sys

_KNOWN = "0."
"""Prefix of the orbax versions with these messages. For other versions nothing is silenced."""


@functools.cache
def quiet_orbax() -> None:
    """Silences, in this process, orbax's log and the tracebacks of its abandoned reads and writes.

    If one array fails, orbax closes its event loop while others are in flight. Each of these prints a traceback, which
    makes hundreds of lines before the message about the checkpoint.
    """
    if not importlib.metadata.version("orbax-checkpoint").startswith(_KNOWN):
        return
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).addFilter(lambda record: not _is_of_orbax(record))
    show = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None if _is_abandoned(unraisable) else show(unraisable)


def _is_of_orbax(record: logging.LogRecord) -> bool:
    traceback = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    return any("orbax" in text for text in (record.pathname, record.getMessage(), traceback))


def _is_abandoned(unraisable: "sys.UnraisableHookArgs") -> bool:
    if str(unraisable.exc_value) == "Event loop is closed":
        return True
    code = getattr(unraisable.object, "cr_code", None)
    return code is not None and "orbax" in code.co_filename
