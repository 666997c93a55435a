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
install_python bench "Python packages to measure against" 'import cv2, faiss, numpy, onnxruntime' "${packages[@]}"
