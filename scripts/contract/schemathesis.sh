#!/usr/bin/env bash
# schemathesis.sh ARGUMENTS: runs Schemathesis with the packages that setup-contract.sh puts in place; it fetches nothing.
set -euo pipefail
. "$(dirname "$0")/../packages.sh"
[ -n "${FACE_ID_CACHE_DIR:-}" ] || { say "set FACE_ID_CACHE_DIR, or run this through make"; exit 3; }
folder=$FACE_ID_CACHE_DIR/contract-python
# The server is on this machine, whatever proxy leads elsewhere.
export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost
[ -f "$folder/installed" ] || { say "Schemathesis is not there: run scripts/setup-contract.sh"; exit 3; }
export PYTHONPATH=$folder PYTHONDONTWRITEBYTECODE=1 SCHEMATHESIS_HOOKS="$(cd "$(dirname "$0")" && pwd)/hooks.py"
exec "$(find_python)" -m schemathesis.cli --config-file "$(dirname "$0")/schemathesis.toml" "$@"
