#!/usr/bin/env bash
# Brings tus-js-client, which a test uploads with, into .tools/tus-client/: 1 MB to download. Safe to run again: what is
# there is left alone. Where npm or its registry is not there it does nothing, and that one test is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pins=scripts/tus_client/package-lock.json
home=.tools/tus-client
# One at a time: a second one waits here and then finds the work done.
exec 9<scripts/tus_client
flock 9
# The stamp is the list of pins itself: whoever changes a pin gets the new files.
cmp --silent "$pins" "$home/package-lock.json" && exit 0
if ! command -v npm >/dev/null; then
  echo 'tus: npm is not installed, so the test with tus-js-client is skipped'
  exit 0
fi

echo 'tus: fetching tus-js-client for the tests into .tools/tus-client/'
mkdir -p .tools
rm -rf .tools/tus-client.new.*
aside=$(mktemp -d "$PWD/.tools/tus-client.new.XXXXXX")
trap 'rm -rf "$aside"' EXIT
chmod 755 "$aside"
cp scripts/tus_client/package.json "$pins" "$aside"
if ! (cd "$aside" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error); then
  echo 'tus: tus-js-client cannot be fetched, so the test with it is skipped'
  exit 0
fi
rm -rf "$home"
mv "$aside" "$home"
trap - EXIT
