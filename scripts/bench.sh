#!/usr/bin/env bash
# Times Boxreel and what one would use instead, side by side; `make bench` builds the programs first.
#
#   PARTS="runs networks stages"   what to time: the whole job against the old way (scripts/bench/old_way.py); the
#                                  bare network against PyTorch, OpenVINO and onnxruntime; Boxreel's stages alone
#   VIDEO=clip.mp4                 the clip; by default the sample clip of 192 frames
#   ROUNDS=3                       how often each runs
#   MODEL=…                        weights; by default models/ssd300-v2.safetensors
#   PRECISION="auto"               Boxreel's, one or more
#
# Tables go to the terminal, figures to runs/bench/*.json. The others need Python packages: once, 2.5 GB are downloaded
# into .tools/bench/ (4.7 GB on disk), because PyTorch for Linux is published with its CUDA libraries only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

parts=${PARTS:-runs networks stages}
video=${VIDEO:-.tools/sample.mp4}
rounds=${ROUNDS:-3}
model=${MODEL:-models/ssd300-v2.safetensors}
read -ra precision <<<"${PRECISION:-auto}"

environment=.tools/bench
install() {
  if cmp --silent scripts/bench/requirements.txt "$environment/requirements.txt"; then
    return
  fi
  echo 'bench: installing what Boxreel is timed against in .tools/bench (2.5 GB to download, some minutes)'
  rm -rf "$environment"
  python3 -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
    --only-binary=:all: --requirement scripts/bench/requirements.txt
  cp scripts/bench/requirements.txt "$environment/"
}
if [ -z "${VIDEO:-}" ] && [ ! -e "$video" ]; then
  scripts/sample/clip.sh "$video"
fi

results=runs/bench
mkdir -p "$results"
stamp=$(date --utc +%Y%m%dT%H%M%SZ)
for part in $parts; do
  case $part in
  runs)
    install
    peer=()
    if [ -e "${BOXREEL_SHARED:-}/bench/original.py" ]; then
      peer=(--peer "$BOXREEL_SHARED/bench/original.py")
    fi
    "$environment/bin/python" scripts/bench/side_by_side.py "$video" --model "$model" --rounds "$rounds" \
      --precision "${precision[@]}" --boxreel target/release/boxreel --results "$results" "${peer[@]}"
    ;;
  networks)
    install
    "$environment/bin/python" scripts/bench/networks.py "$model" --bare target/release/examples/bare \
      --rounds "$rounds" --precision "${precision[@]}" --results "$results/networks-$stamp.json"
    ;;
  stages)
    for one in "${precision[@]}"; do
      target/release/examples/bench_stages "$video" --model "$model" --rounds "$rounds" --precision "$one" \
        >"$results/stages-$one-$stamp.json"
    done
    ;;
  *)
    echo "bench: PARTS names $part, and there are runs, networks and stages" >&2
    exit 2
    ;;
  esac
done
