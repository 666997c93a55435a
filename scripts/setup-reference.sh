#!/usr/bin/env bash
# Puts the Python packages of another implementation of the detectors into the project's own cache: tests compare with it
# (scripts/reference/families.py). Safe to run again; does nothing when all is there.
set -euo pipefail
. "$(dirname "$0")/packages.sh"

packages=(
  numpy==2.4.6
  onnxruntime==1.32.0
  opencv-python-headless==4.14.0.94
  # What these import; pip is told to take nothing by itself.
  flatbuffers==25.12.19
  packaging==26.4
  protobuf==7.36.2
)
install_python reference "what the tests compare detectors with" 'import cv2, numpy, onnxruntime' "${packages[@]}"
