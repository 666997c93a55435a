#!/usr/bin/env bash
# Puts in place what face-id needs beside Rust: a C compiler with cmake and nasm for libjpeg-turbo (through apt, where they
# are missing) and the ONNX Runtime library (from the onnxruntime wheel, into the project's own cache). Safe to run again;
# does nothing when all is there.
set -euo pipefail
. "$(dirname "$0")/packages.sh"

version=1.32.0
cache=${FACE_ID_CACHE_DIR:?set FACE_ID_CACHE_DIR, or run this through make}
library=$cache/onnxruntime/libonnxruntime.so.$version

command -v cargo >/dev/null || { say "cargo is missing: install Rust with rustup first"; exit 1; }

missing=()
{ command -v cc && command -v make; } >/dev/null || missing+=(build-essential)
command -v cmake >/dev/null || missing+=(cmake)
# Its fast code is written for nasm on Intel and AMD only.
[ "$(uname -m)" != x86_64 ] || command -v nasm >/dev/null || missing+=(nasm)
python=$(find_python)
if [ ! -f "$library" ] && [ -z "$python" ]; then missing+=(python3 python3-pip); fi
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"

if [ ! -f "$library" ]; then
  say "fetching ONNX Runtime $version"
  mkdir -p "$cache/onnxruntime"
  work=$(mktemp -d "$cache/wheel.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  pip_install "$work" "onnxruntime==$version"
  "$(find_python)" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$work/onnxruntime/capi/libonnxruntime.so.$version"
  # One rename within a file system, so that a library that is there is whole.
  mv "$work/onnxruntime/capi/libonnxruntime.so.$version" "$library"
fi
say "ready"
