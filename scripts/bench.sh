#!/usr/bin/env bash
# Times the old way (scripts/bench/old_way.py) and Boxreel side by side; `make bench` builds the program first.
#
#   VIDEO=clip.mp4   the clip; by default the sample clip of 192 frames
#   ROUNDS=3         how often each runs
#   MODEL=…          weights; by default models/ssd300-v0.safetensors
#
# The old way needs PyTorch in Python: once, 2.4 GB are downloaded into .tools/bench/ (4.5 GB on disk),
# because PyTorch for Linux is published with its CUDA libraries only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

video=${VIDEO:-.tools/sample.mp4}
rounds=${ROUNDS:-3}
model=${MODEL:-models/ssd300-v0.safetensors}

environment=.tools/bench
if ! cmp --silent scripts/bench/requirements.txt "$environment/requirements.txt"; then
  echo 'bench: installing the old way in .tools/bench (2.4 GB to download, some minutes)'
  rm -rf "$environment"
  python3 -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
    --only-binary=:all: --requirement scripts/bench/requirements.txt
  cp scripts/bench/requirements.txt "$environment/"
fi
if [ -z "${VIDEO:-}" ] && [ ! -e "$video" ]; then
  scripts/sample/clip.sh "$video"
fi

mkdir -p runs/bench
peer=()
if [ -e "${BOXREEL_SHARED:-}/bench/original.py" ]; then
  peer=(--peer "$BOXREEL_SHARED/bench/original.py")
fi
exec "$environment/bin/python" scripts/bench/side_by_side.py "$video" --model "$model" --rounds "$rounds" \
  --boxreel target/release/boxreel --results runs/bench "${peer[@]}"
