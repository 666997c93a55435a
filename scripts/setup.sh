#!/usr/bin/env bash
# Puts in place what face-id needs beside Rust: a C linker (through apt, where it is missing) and the ONNX Runtime
# library (from the onnxruntime wheel, into the project's own cache). Safe to run again; does nothing when all is there.
set -euo pipefail

version=1.32.0
cache=${FACE_ID_CACHE_DIR:?set FACE_ID_CACHE_DIR, or run this through make}
library=$cache/onnxruntime/libonnxruntime.so.$version

say() { printf 'setup: %s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else
    say "this needs root and there is no sudo: run as root: $*"
    exit 1
  fi
}

install_packages() {
  command -v apt-get >/dev/null || { say "please install: $*"; exit 1; }
  say "installing $* with apt"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

command -v cargo >/dev/null || { say "cargo is missing: install Rust with rustup first"; exit 1; }

missing=()
command -v cc >/dev/null || missing+=(build-essential)
# Which Python has pip is not always the first one on the path.
python=
for candidate in python3 /usr/bin/python3; do
  if command -v "$candidate" >/dev/null && "$candidate" -m pip --version >/dev/null 2>&1; then python=$candidate; break; fi
done
if [ ! -f "$library" ] && [ -z "$python" ]; then missing+=(python3 python3-pip); fi
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"

if [ ! -f "$library" ]; then
  python=${python:-/usr/bin/python3}
  say "fetching ONNX Runtime $version"
  mkdir -p "$cache/onnxruntime"
  work=$(mktemp -d "$cache/wheel.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # --target keeps out of the system's Python, which Debian manages itself.
  "$python" -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --no-warn-script-location \
    --root-user-action=ignore --target "$work" "onnxruntime==$version"
  "$python" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$work/onnxruntime/capi/libonnxruntime.so.$version"
  # One rename within a file system, so that a library that is there is whole.
  mv "$work/onnxruntime/capi/libonnxruntime.so.$version" "$library"
fi
say "ready"
