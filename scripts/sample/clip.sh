#!/usr/bin/env bash
# Makes the clip that the demo and the benchmark use where no video is given: a slow pan over four
# photographs, 640×480, 24 frames a second, eight seconds, with a quiet tone.
#
#   scripts/sample/clip.sh FILE.mp4
#
# The photographs are not in this repository; they come out of a published package (pictures.txt).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
clip=$1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! "$here/../fetch_wheels.sh" "$here/pictures.txt" "$work"; then
  echo 'The pictures of the sample clip could not be downloaded; name a video of yours instead, as in VIDEO=holiday.mp4' >&2
  exit 1
fi
pictures=(astronaut motorcycle_left chelsea coffee)
members=("${pictures[@]/#/skimage/data/}")
members=("${members[@]/%/.png}")
unzip -qjo "$work"/scikit_image-*.whl "${members[@]}" -d "$work"

# Each picture is blown up first, because zoompan moves by whole pixels of its input.
inputs=() graph='' joined=''
for k in "${!pictures[@]}"; do
  inputs+=(-i "$work/${pictures[k]}.png")
  graph+="[$k]scale=2560:1920:force_original_aspect_ratio=increase,crop=2560:1920,"
  graph+="zoompan=z='1+on/480':x='(iw-iw/zoom)*on/48':y='(ih-ih/zoom)/2':d=48:s=640x480:fps=24,setsar=1[v$k];"
  joined+="[v$k]"
done
ffmpeg -nostdin -v error -y "${inputs[@]}" -f lavfi -i 'sine=frequency=220:sample_rate=48000,volume=0.05' \
  -filter_complex "$graph${joined}concat=n=${#pictures[@]}:v=1:a=0,format=yuv420p[v]" \
  -map '[v]' -map "${#pictures[@]}:a" -shortest -t 8 -c:v libx264 -crf 20 -g 48 -c:a aac -movflags +faststart \
  "$work/clip.mp4"
mkdir -p "$(dirname "$clip")"
mv "$work/clip.mp4" "$clip"
