#!/usr/bin/env bash
# Installs what the tests need and runs the whole suite.
#
#   bash launch/test.sh [arguments of pytest, such as: -m 'not slow' tests/models]
#   bash launch/test.sh --full     also what other tests prove in part
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install "[dev,parity]"
# Everything that is compiled, however small, is kept for the other processes of the run.
export JAX_PLATFORMS=cpu JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --pythonpath .venv/bin/python
exec .venv/bin/python -m pytest -n 2 "$@"
