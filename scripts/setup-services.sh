#!/usr/bin/env bash
# Puts real PostgreSQL (with pgvector) and RabbitMQ in place, for those who have no containers and for the tests:
# PostgreSQL from the pgserver wheel into the project's own cache, RabbitMQ from the distribution. Safe to run again.
set -euo pipefail
. "$(dirname "$0")/packages.sh"

version=0.1.4
cache=${FACE_ID_CACHE_DIR:?set FACE_ID_CACHE_DIR, or run this through make}
postgres=$cache/pgserver/pgserver/pginstall/bin/postgres

missing=()
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing+=(rabbitmq-server)
command -v setpriv >/dev/null || missing+=(util-linux)
python=$(find_python)
if [ ! -x "$postgres" ] && [ -z "$python" ]; then missing+=(python3 python3-pip); fi
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"

if [ ! -x "$postgres" ]; then
  say "fetching PostgreSQL with pgvector (pgserver $version)"
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/wheel.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  pip_install "$work" "pgserver==$version"
  # The server runs as another user where this is root.
  chmod -R a+rX "$work"
  "$work/pgserver/pginstall/bin/psql" --version >/dev/null
  rm -rf "$cache/pgserver"
  mv "$work" "$cache/pgserver"
fi
