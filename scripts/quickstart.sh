#!/usr/bin/env bash
# Set up .venv and run the whole loop on generated problems: scripts/quickstart.sh [qstar run options]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
# An allocator that keeps freed pages spares page faults, which slow training on a CPU.
if [ -z "${LD_PRELOAD:-}" ] && command -v ldconfig >/dev/null; then
    # awk reads to the end: were it to stop at the first match, ldconfig could fail on the closed pipe, and with it this script.
    allocator="$(ldconfig -p | awk '/libtcmalloc(_minimal)?\.so\.4 |libjemalloc\.so\.2 / && !path {path = $NF} END {print path}')"
    [ -z "$allocator" ] || export LD_PRELOAD="$allocator"
fi
exec .venv/bin/qstar run configs/quickstart.yaml "$@"
