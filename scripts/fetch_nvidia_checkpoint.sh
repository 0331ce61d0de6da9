#!/usr/bin/env bash
# Downloads the checkpoint of SSD300-ResNet50 that NVIDIA published (COCO's 80 classes, trained with mixed precision) and
# makes Boxreel's weights of it. NVIDIA's terms apply to it; it is not part of Boxreel.
#
#   scripts/fetch_nvidia_checkpoint.sh [--url URL] [--sha256 HEX] [--out models/nvidia-ssd300.safetensors]
#
# Without --sha256 the file's checksum is printed and not compared: none is known to have been published. Keep it, and give it
# the next time. Boxreel runs nothing that is in a checkpoint, so the worst a wrong file can do is detect badly.
# A file that was fetched before is not fetched again. Without torch in Python nothing is converted, and need not be:
# Boxreel reads the checkpoint as it is, with --model.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

url=https://api.ngc.nvidia.com/v2/models/nvidia/ssd_pyt_ckpt_amp/versions/20.06.0/files/nvidia_ssdpyt_amp_200703.pt
sha256=
out=models/nvidia-ssd300.safetensors

die() { printf 'fetch_nvidia_checkpoint: %s\n' "$*" >&2; exit 1; }
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --url | --sha256 | --out)
      [ $# -ge 2 ] || die "$1 needs a value"
      case "$1" in --url) url=$2 ;; --sha256) sha256=$2 ;; --out) out=$2 ;; esac
      shift 2 ;;
    *) die "unknown option '$1'; there are --url, --sha256 and --out" ;;
  esac
done
[ -z "$sha256" ] || [[ "$sha256" =~ ^[0-9a-fA-F]{64}$ ]] || die "--sha256 takes 64 hexadecimal digits"
[ -d "$(dirname "$out")" ] || die "the folder of $out does not exist"

checkpoint=.tools/$(basename "${url%%\?*}")
mkdir -p .tools
if [ ! -s "$checkpoint" ]; then
  command -v curl >/dev/null || die 'curl is needed to download; install it, or put the file at '"$checkpoint"
  echo "fetching $url"
  # Put in its place when it is whole.
  curl --fail --location --retry 3 --output "$checkpoint.part" "$url" ||
    die "the download failed; check the address, or fetch the file by hand and put it at $checkpoint"
  mv "$checkpoint.part" "$checkpoint"
fi

found=$(sha256sum "$checkpoint" | cut -d ' ' -f 1)
if [ -z "$sha256" ]; then
  echo "sha256 of $checkpoint: $found (not compared; give it with --sha256 the next time)"
elif [ "${sha256,,}" != "$found" ]; then
  die "$checkpoint has the checksum $found instead of ${sha256,,}; remove it and try again"
fi
# A zip archive, or the older format's first pickle; a page that says why there is nothing to fetch is neither.
case "$(head -c 4 "$checkpoint" | od -An -tx1 | tr -d ' ')" in
  504b0304 | 80028a0a) ;;
  *) die "$checkpoint is no file of torch.save; remove it, and check the address" ;;
esac

if python3 -c 'import torch, numpy' 2>/dev/null; then
  python3 scripts/convert_checkpoint.py "$checkpoint" "$out"
  echo "use it with: boxreel detect --model $out"
else
  echo "python3 has no torch, so nothing is converted. Use the checkpoint as it is: boxreel detect --model $checkpoint"
fi
