# Sourced by the set-up scripts: packages of the distribution and of PyPI.

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
  # What a package would start by itself is not needed: every service here is started by hand, on ports of its own.
  as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Which Python has pip is not always the first one on the path.
find_python() {
  local candidate
  for candidate in python3 /usr/bin/python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -m pip --version >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
}

# pip_install FOLDER PACKAGE...: into a folder, which keeps out of the system's Python that Debian manages itself.
pip_install() {
  local python
  python=$(find_python)
  "${python:-/usr/bin/python3}" -m pip install --quiet --no-deps --no-compile --disable-pip-version-check \
    --no-warn-script-location --root-user-action=ignore --target "$@"
}
