#!/usr/bin/env bash
# The direction of dependencies between our crates, and which crate may see which library. Each "must not" is paired
# with a "must", since `cargo tree -i` fails for a misspelt name just as it does for an absent one.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0

# What is only a dev-dependency exits 0 and prints nothing, so the output counts and not the exit status.
tree() { [ -n "$(cargo tree --locked --quiet --edges normal --package "$1" --invert "$2" 2>/dev/null)" ]; }
must() { tree "$1" "$2" || { echo "$1 should depend on $2 and does not"; failed=1; }; }
must_not() { if tree "$1" "$2"; then echo "$1 must not depend on $2"; failed=1; fi; }

# For tests and trials only: the product has nothing of it.
for crate in cli api worker shared; do must_not "$crate" services; done
for crate in api worker migrations shared; do must cli "$crate"; done
must api shared;    must_not api worker;    must_not api migrations;    must_not api cli
must worker shared; must_not worker api;    must_not worker migrations; must_not worker cli
must_not shared api; must_not shared worker; must_not shared migrations; must_not shared cli
must_not migrations shared
must worker ort;   must_not api ort;   must_not shared ort
must api axum;     must_not shared axum
must worker image; must_not api image
must shared sea-orm; must migrations sea-orm-migration

[ $failed = 0 ] && echo "dependency directions hold"
exit $failed
