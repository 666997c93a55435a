#!/usr/bin/env bash
# python.sh SCRIPT ARGUMENTS: runs a script of this folder with the packages that setup-bench.sh puts in place.
set -euo pipefail
. "$(dirname "$0")/../packages.sh"
"$(dirname "$0")/../setup-bench.sh"
export PYTHONPATH=$FACE_ID_CACHE_DIR/bench-python PYTHONDONTWRITEBYTECODE=1
exec "$(find_python)" "$@"
