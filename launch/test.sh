#!/usr/bin/env bash
# Installs what the tests need and runs the whole suite.
#
#   bash launch/test.sh [arguments of pytest, such as: -m 'not slow' tests/models]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install "[dev,parity]"
export JAX_PLATFORMS=cpu
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --pythonpath .venv/bin/python
exec .venv/bin/python -m pytest -n 2 "$@"
