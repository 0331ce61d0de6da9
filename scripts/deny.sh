#!/usr/bin/env bash
# Checks the licences and origins of all dependencies (deny.toml) with cargo-deny, which is built into
# .tools/ the first time. Security advisories are not checked here, because their database is another
# repository that has to be fetched: run `cargo deny check advisories` for them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.20.2
tool=.tools/bin/cargo-deny
if [ "$("$tool" --version 2>/dev/null)" != "cargo-deny $version" ]; then
  echo "deny: building cargo-deny $version into .tools/ (a few minutes, once)"
  # Unoptimised: it is built more slowly than it runs.
  CARGO_PROFILE_DEV_DEBUG=false cargo install --quiet --locked --debug "cargo-deny@$version" \
    --root .tools --target-dir .tools/build
  rm -rf .tools/build
fi
exec "$tool" --offline --locked check bans licenses sources
