#!/usr/bin/env bash
# Puts real PostgreSQL (with pgvector) and RabbitMQ in place, for those who have no containers and for the tests:
# PostgreSQL from the pgserver wheel into the project's own cache, RabbitMQ from the distribution. Safe to run again.
set -euo pipefail
. "$(dirname "$0")/packages.sh"

version=0.1.4
cache=${FACE_ID_CACHE_DIR:?set FACE_ID_CACHE_DIR, or run this through make}
folder=$cache/pgserver-$version
postgres=$folder/pgserver/pginstall/bin/postgres

missing=()
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing+=(rabbitmq-server)
if ! command -v setpriv >/dev/null || ! command -v setsid >/dev/null; then missing+=(util-linux); fi
# The tests run the snippets of the manual.
for program in node openssl curl; do
  command -v $program >/dev/null || missing+=("${program/#%node/nodejs}")
done
if [ ! -x "$postgres" ] && [ -z "$(find_python)" ]; then missing+=(python3 python3-pip); fi
if [ ${#missing[@]} != 0 ]; then
  install_packages "${missing[@]}"
  # Where systemd runs, apt starts a broker on the usual ports; it was not there before, so nobody needs it.
  if [[ " ${missing[*]} " == *" rabbitmq-server "* ]] && [ -d /run/systemd/system ]; then
    as_root systemctl disable --quiet --now rabbitmq-server || say "the system's own rabbitmq-server could not be stopped"
  fi
fi

if [ ! -x "$postgres" ]; then
  say "fetching PostgreSQL with pgvector (pgserver $version)"
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/wheel.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  pip_install "$work" "pgserver==$version"
  # The server runs as another user where this is root.
  chmod -R a+rX "$work"
  "$work/pgserver/pginstall/bin/psql" --version >/dev/null
  # The wheel stays as it is: its programs find their libraries by where they lie. And one rename within a file system,
  # so that a folder that is there is whole.
  rm -rf "$folder"
  mv "$work" "$folder"
fi
