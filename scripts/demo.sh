#!/usr/bin/env bash
# Runs the main job once on a video: VIDEO=holiday.mp4, or the sample clip where none is named.
# `make demo` builds the program first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

video=${VIDEO:-.tools/sample.mp4}
if [ -z "${VIDEO:-}" ] && [ ! -e "$video" ]; then
  echo 'demo: making the sample clip (14 MB to download)'
  scripts/sample/clip.sh "$video"
fi

target/release/boxreel detect "$video" --out runs/demo --exist-ok --save-txt --save-frames

name=$(basename "$video")
folder=runs/demo/${name%.*}
cat <<END

The result is in $folder:
  ${name%.*}.mp4     the video with every object boxed and named; plays in any browser
  ${name%.*}.avi     the same as an AVI file
  detections.json    the detections in COCO's format
  detections.csv     the detections as a table
  tar_frame/         the pictures with boxes, one a frame
END
