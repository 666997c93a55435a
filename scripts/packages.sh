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

# install_python NAME WHAT IMPORTS PACKAGE...: packages for one purpose, in a folder NAME-python of the cache; nothing is done
# where they are there. IMPORTS is a line of Python that fails where they do not work.
install_python() {
  local name=$1 what=$2 imports=$3 cache=${FACE_ID_CACHE_DIR:?set FACE_ID_CACHE_DIR, or run this through make} folder wanted work
  shift 3
  folder=$cache/$name-python
  [ -n "$(find_python)" ] || install_packages python3 python3-pip
  # Wheels belong to one version of Python.
  wanted=$("$(find_python)" --version; printf '%s\n' "$@")
  if [ "$(cat "$folder/installed" 2>/dev/null)" = "$wanted" ]; then return; fi
  say "fetching $what"
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/$name-python.XXXXXX")
  # shellcheck disable=SC2064 # the folder of now
  trap "rm -rf '$work'" EXIT
  pip_install "$work" "$@"
  PYTHONPATH=$work "$(find_python)" -c "$imports"
  printf '%s' "$wanted" >"$work/installed"
  # One rename within a file system, so that a folder that is there is whole.
  rm -rf "$folder"
  mv "$work" "$folder"
}
