"""The console for tables."""

import sys

from rich.console import Console


def console() -> Console:
    """A console for tables, with a fixed large width if the output is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 200)
