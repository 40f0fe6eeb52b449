"""When Python searches for unreachable reference cycles.

Imports and tracing allocate millions of objects that live as long as the process. With Python's default thresholds the
collector traverses them again and again: about an eighth of the processor time before the first step. A command
therefore postpones collection while it starts. Training then excludes the objects that exist by then, and collects as
usual, so that a collection between two steps is short on every host.
"""

import gc

STARTING = (50_000, 50, 1000)
"""Thresholds while a command starts, for `gc.set_threshold`."""

_usual: tuple[int, int, int] | None = None


def postpone() -> None:
    """Collects rarely until `settle` is called. For the process of a command; a library leaves the collector alone."""
    global _usual
    _usual = gc.get_threshold()
    gc.set_threshold(*STARTING)


def settle() -> None:
    """Excludes all present objects from later collections and restores the thresholds. Does nothing unless collection
    is postponed."""
    global _usual
    if _usual is not None:
        gc.freeze()
        gc.set_threshold(*_usual)
        _usual = None
