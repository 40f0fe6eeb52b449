"""Keeps orbax from printing what its caller is told by an exception anyway."""

import functools
import logging
import sys


@functools.cache
def quiet_orbax() -> None:
    """Silences, for this process, orbax's log and the tracebacks of its abandoned reads.

    Where one array cannot be read, orbax closes its event loop under all reads still in flight, and each of them prints
    a traceback of its own, hundreds of lines before the one that tells which checkpoint is damaged.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    show = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None if _is_abandoned_read(unraisable) else show(unraisable)


def _is_abandoned_read(unraisable: "sys.UnraisableHookArgs") -> bool:
    if str(unraisable.exc_value) == "Event loop is closed":
        return True
    code = getattr(unraisable.object, "cr_code", None)
    return code is not None and "orbax" in code.co_filename
