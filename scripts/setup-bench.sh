#!/usr/bin/env bash
# Puts the Python packages that `make bench` measures against into the project's own cache. Safe to run again; does
# nothing when all is there.
set -euo pipefail
. "$(dirname "$0")/packages.sh"

packages=(
  faiss-cpu==1.15.1
  numpy==2.4.6
  onnxruntime==1.32.0
  opencv-python-headless==4.14.0.94
  # What these import; pip is told to take nothing by itself.
  flatbuffers==25.12.19
  packaging==26.4
  protobuf==7.36.2
)
cache=${FACE_ID_CACHE_DIR:?set FACE_ID_CACHE_DIR, or run this through make}
folder=$cache/bench-python

[ -n "$(find_python)" ] || install_packages python3 python3-pip
# Wheels belong to one version of Python.
wanted=$("$(find_python)" --version; printf '%s\n' "${packages[@]}")
if [ "$(cat "$folder/installed" 2>/dev/null)" != "$wanted" ]; then
  say "fetching Python packages to measure against"
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/bench-python.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  pip_install "$work" "${packages[@]}"
  PYTHONPATH=$work "$(find_python)" -c 'import cv2, faiss, numpy, onnxruntime'
  printf '%s' "$wanted" >"$work/installed"
  # One rename within a file system, so that a folder that is there is whole.
  rm -rf "$folder"
  mv "$work" "$folder"
fi
