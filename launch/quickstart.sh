#!/usr/bin/env bash
# From a fresh clone to a trained, sampled and reported model on a CPU, without downloading data.
#
#   bash launch/quickstart.sh [overrides, as for `llm-jax train`]
#
# Run it again to resume a run that was interrupted; a finished one only reports where it is.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install "[dev]"
export JAX_PLATFORMS=cpu
exec .venv/bin/llm-jax train experiments/quickstart.py "$@"
