"""Writes the golden records of all experiments and of the first step anew; look at the difference before committing.

Command: python tests/golden/regenerate.py
"""

import os
import shutil
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.golden import first_step, records  # noqa: E402 - the path and the platform must be set before


def main() -> None:
    """Writes every file and says so."""
    shutil.rmtree(records.GOLDEN, ignore_errors=True)
    for file in records.experiment_files():
        golden = records.golden_file(file)
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(records.record(file), encoding="utf-8")
        print(golden)
    first_step.write(first_step.measure())
    print(first_step.GOLDEN)


if __name__ == "__main__":
    main()
