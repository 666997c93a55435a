#!/usr/bin/env bash
# Puts in place what a build with the feature `heic` needs: libheif with its headers, through apt. Safe to run again.
set -euo pipefail
. "$(dirname "$0")/packages.sh"

install_packages pkg-config libheif-dev
pkg-config --atleast-version=1.15 libheif || { say "libheif is older than 1.15"; exit 1; }
say "ready"
