#!/usr/bin/env bash
# Brings tus-js-client, which a test uploads with, into .tools/tus-client/: 1 MB to download. Safe to run again: what is
# there is left alone. Where npm or its registry is not there it does nothing, and that one test is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/fetch.sh
. scripts/fetch.sh

begin_fetch tus-client scripts/tus_client/package-lock.json 'tus: fetching tus-js-client for the tests into .tools/tus-client/'
if ! command -v npm >/dev/null; then
  echo 'tus: npm is not installed, so the test with tus-js-client is skipped'
  exit 0
fi
cp scripts/tus_client/package.json "$pins" "$aside"
if ! (cd "$aside" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error); then
  echo 'tus: tus-js-client cannot be fetched, so the test with it is skipped'
  exit 0
fi
end_fetch
