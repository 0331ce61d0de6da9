#!/usr/bin/env bash
# Brings axe-core, the rules of accessibility that the browser tests hold every page to, into .tools/axe/. 160 kB to
# download. Safe to run again: what is there is left alone.
#
# It is published for Node; a package for Python carries the same file, and needs nothing that is not here anyway. It
# serves the tests only and is no part of what Boxreel ships.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/fetch.sh
. scripts/fetch.sh

begin_fetch axe scripts/axe/pins.txt 'axe: fetching axe-core for the tests into .tools/axe/'
scripts/fetch_wheels.sh "$pins" "$aside/wheels"
unzip -qoj "$aside"/wheels/*.whl '*/axe.min.js' -d "$aside"
rm -rf "$aside/wheels"
end_fetch
