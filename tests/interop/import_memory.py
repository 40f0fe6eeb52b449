"""Imports the folder named on the command line; prints its largest use of memory beyond what was there before, in bytes
of the parameters: python tests/interop/import_memory.py FOLDER

Counted are the process's own pages (RssAnon): those of the files, which the system may drop at any time, are not.
"""

import sys
import threading
from pathlib import Path

import jax

from llm_jax.core import trees
from llm_jax.interop import load_hf


def used() -> int:
    """Bytes of the process's own pages in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def main() -> None:
    """Watches an import."""
    jax.block_until_ready(jax.numpy.zeros(1))
    before, most, done = used(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, used())

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, params = load_hf(sys.argv[1])
    jax.block_until_ready(params)
    done.set()
    watcher.join()
    print((max(most, used()) - before) / trees.size_bytes(params))


if __name__ == "__main__":
    main()
