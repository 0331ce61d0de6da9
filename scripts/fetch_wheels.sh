#!/usr/bin/env bash
# Downloads Python wheels by a list that names each file's checksum, so these exact files come or none,
# whatever Python runs pip.
#
#   scripts/fetch_wheels.sh LIST FOLDER
set -euo pipefail

# The first Python that has pip: the one in PATH may have been installed without it.
for python in python3 /usr/bin/python3; do
  "$python" -m pip --version >/dev/null 2>&1 && break
  python=
done
if [ -z "$python" ]; then
  echo 'python3 has no pip, which downloads what is published as Python wheels: install pip (Debian: python3-pip)' >&2
  exit 1
fi

platforms=(--platform manylinux2014_x86_64)
for glibc in {5..28}; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
exec "$python" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
  --only-binary=:all: --require-hashes --implementation cp --python-version 3.11 \
  --abi cp311 --abi abi3 --abi none "${platforms[@]}" --dest "$2" --requirement "$1"
