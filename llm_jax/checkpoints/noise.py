"""Keeps orbax from printing what its caller is told by an exception anyway."""

import functools
import importlib.metadata
import logging
import sys

_KNOWN = "0."
"""Versions of orbax that print so; of any other everything is shown."""


@functools.cache
def quiet_orbax() -> None:
    """Silences, for this process, orbax's log and the tracebacks of its abandoned reads and writes.

    Where one array fails, orbax closes its event loop under all others still in flight, and each of them prints a
    traceback of its own, hundreds of lines before the one that tells which checkpoint it is about.
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
