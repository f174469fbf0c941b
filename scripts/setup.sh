#!/usr/bin/env bash
# Make .venv and install qstar into it. Called by quickstart.sh and test.sh; usage: scripts/setup.sh [EXTRAS]
#   EXTRAS  comma-separated extras of pyproject.toml, such as dev,lora
#   PYTHON  the interpreter to use (3.11 or newer; default python3)
# torch: one that .venv already has is kept. On Linux x86-64, where the package index serves a CUDA build of several
# gigabytes, a machine without an NVIDIA GPU gets the CPU build instead; a machine with one gets the CUDA build.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "qstar needs Python 3.11 or newer; name one with PYTHON=/path/to/python3.11 $0" >&2
    exit 1
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }
if ! .venv/bin/python -c 'import torch' 2>/dev/null &&
    [ "$(uname -sm)" = "Linux x86_64" ] && ! command -v nvidia-smi >/dev/null; then
    torch="torch==2.13.0+cpu"
    echo "installing $torch"
    # The configured index or wheel folder may have it; otherwise PyTorch's own index does.
    if ! pip install "$torch" 2>/dev/null && ! pip install "$torch" --index-url https://download.pytorch.org/whl/cpu; then
        echo "no CPU build of torch 2.13 found; install one into .venv with pip, then run this again" >&2
        exit 1
    fi
fi
echo "installing qstar"
pip install --editable ".${1:+[$1]}"
