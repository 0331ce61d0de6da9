#!/usr/bin/env bash
# Brings axe-core, the rules of accessibility that the browser tests hold every page to, into .tools/axe/. 160 kB to
# download. Safe to run again: what is there is left alone.
#
# It is published for Node; a package for Python carries the same file, and needs nothing that is not here anyway. It
# serves the tests only and is no part of what Boxreel ships.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pins=scripts/axe/pins.txt
home=.tools/axe
# One at a time: a second one waits here and then finds the work done.
exec 9<scripts/axe
flock 9
# The stamp is the list of pins itself: whoever changes a pin gets the new file.
cmp --silent "$pins" "$home/pins.txt" && exit 0

echo 'axe: fetching axe-core for the tests into .tools/axe/'
mkdir -p .tools
rm -rf .tools/axe.new.*
aside=$(mktemp -d "$PWD/.tools/axe.new.XXXXXX")
trap 'rm -rf "$aside"' EXIT
chmod 755 "$aside"
scripts/fetch_wheels.sh "$pins" "$aside/wheels"
unzip -qoj "$aside"/wheels/*.whl '*/axe.min.js' -d "$aside"
rm -rf "$aside/wheels"
cp "$pins" "$aside/pins.txt"
rm -rf "$home"
mv "$aside" "$home"
trap - EXIT
