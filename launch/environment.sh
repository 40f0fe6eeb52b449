# Sourced by the scripts of this folder: makes .venv in the clone and installs the package into it, once.
# Nothing outside the clone is written: caches and temporary files stay below .cache.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

python_of_choice="${PYTHON:-python3}"
if ! "$python_of_choice" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "llm_jax needs Python 3.11 or newer; '$python_of_choice' is $("$python_of_choice" --version 2>&1 || echo absent)." >&2
    echo "Set PYTHON to a newer interpreter, for example: PYTHON=python3.12 bash launch/quickstart.sh" >&2
    exit 1
fi

mkdir -p .cache/tmp
export TMPDIR="$PWD/.cache/tmp" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MPLCONFIGDIR="$PWD/.cache/matplotlib"
export JAX_COMPILATION_CACHE_DIR="$PWD/.cache/jax" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
# XLA's CPU backend takes fresh memory for the temporaries of every step. Kept in the process, in huge pages, it costs
# hardly a page fault.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-$(cat launch/malloc.tunables)}"

# install EXTRAS: into .venv, unless what is there was installed from the same setup.py with the same extras.
install() {
    local wanted stamp=.venv/installed
    wanted="$("$python_of_choice" --version) $1 $(cksum <setup.py)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    echo "Installing into .venv (once, a few minutes)..."
    rm -f "$stamp"
    "$python_of_choice" -m venv .venv
    .venv/bin/python -m pip install --quiet --progress-bar off --editable ".$1"
    echo "$wanted" >"$stamp"
}
