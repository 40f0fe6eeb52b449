"""Where tables are printed."""

import sys

from rich.console import Console


def console() -> Console:
    """For tables: as wide as they need where no terminal limits it."""
    return Console(width=None if sys.stdout.isatty() else 200)
