"""Runs `llm-jax ...` as one host that is watched. Usage: observed_host FOLDER INDEX SLOW WORDS..., see start_hosts."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from llm_jax import assemble, cli
from llm_jax.core import garbage
from llm_jax.data import pipeline


def main(folder: str, index: int, slow: int, words: list[str]) -> None:
    """Runs the command, then writes FOLDER/rows.INDEX.json."""
    rows: list[int] = []
    prepare, place = pipeline._Prepared.__getitem__, assemble.global_batch

    def noted(self: Any, row: int) -> Any:
        if self.name == "transform train":
            rows.append(row)
        return prepare(self, row)

    def delayed(*arguments: Any) -> Any:
        time.sleep(0.5)
        return place(*arguments)

    pipeline._Prepared.__getitem__ = noted
    if index == slow:
        assemble.global_batch = delayed
    cli.main(words)
    if folder:
        (Path(folder) / f"rows.{index}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    garbage.postpone()
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
