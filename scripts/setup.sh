#!/usr/bin/env bash
# Makes a fresh machine ready to build Boxreel: system packages, and libtorch in .libtorch/.
# Safe to run again: what is there already is left alone, and then it takes well under a second.
#
#   scripts/setup.sh            for the processor alone: 530 MB to download, 520 MB on disk
#   scripts/setup.sh --cuda     for NVIDIA GPUs as well: 2.4 GB to download, 4 GB on disk
#
# Rust itself comes from rustup (https://rustup.rs), which reads rust-toolchain.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Why each is needed:
#   libav*, libsw*, pkg-config, clang   FFmpeg's libraries, and libclang to read their headers
#                                       (libavfilter: tone-mapping of HDR)
#   g++, make, cmake, nasm              torch-sys, SQLite and libjpeg-turbo are compiled here
#   python3-pip, unzip                  libtorch is published as a Python wheel
#   ffmpeg                              the tests, the demo and the benchmark make their clips with it
#   libcurl4                            the MongoDB server that the tests start is linked with it
#   chromium, chromium-driver           the tests look at the pages with it
#   python3-venv                        `make bench` runs the old way in an environment of its own
#   git, ca-certificates                what a minimal machine lacks
debian_packages=(
  libavcodec-dev libavfilter-dev libavformat-dev libavutil-dev libswscale-dev libswresample-dev
  pkg-config clang g++ make cmake nasm
  python3 python3-pip python3-venv unzip ffmpeg libcurl4 chromium chromium-driver git
  ca-certificates
)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

variant=cpu
for argument in "$@"; do
  case "$argument" in
    --cuda) variant=cuda ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown option '$argument'; the only one is --cuda" ;;
  esac
done

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
  die "Boxreel is built on 64-bit x86 Linux; this machine is $(uname -s) on $(uname -m)"

missing_debian_packages() {
  # dpkg-query exits 1 as soon as one name is unknown to it: what counts is what it prints.
  local installed
  installed=" $( (dpkg-query --show --showformat='${Package}=${db:Status-Status}\n' "${debian_packages[@]}" 2>/dev/null || true) |
    sed -n 's/=installed$//p' | tr '\n' ' ')"
  for package in "${debian_packages[@]}"; do
    [[ "$installed" == *" $package "* ]] || printf '%s\n' "$package"
  done
}

install_debian_packages() {
  local missing
  mapfile -t missing < <(missing_debian_packages)
  [ "${#missing[@]}" -gt 0 ] || return 0
  say "installing Debian packages: ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null ||
      die "these packages need root, and there is no sudo. As root, run: apt-get install --no-install-recommends ${missing[*]}"
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

check_elsewhere() {
  local missing=()
  for tool in pkg-config clang g++ make cmake nasm python3 unzip ffmpeg git; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  if command -v pkg-config >/dev/null; then
    for library in libavcodec libavfilter libavformat libavutil libswscale libswresample; do
      pkg-config --exists "$library" || missing+=("the development files of $library")
    done
  fi
  [ "${#missing[@]}" = 0 ] && return 0
  local list
  list=$(printf ', %s' "${missing[@]}")
  die "this is neither Debian nor a relative of it, so please install by your own package manager: ${list:2}. Then run this again"
}

install_libtorch() {
  local pins=scripts/libtorch/$variant.txt stamp wanted
  stamp=.libtorch/.pins
  # One set-up at a time: a second one waits here and then finds the work done.
  exec 9<scripts/libtorch
  flock 9
  # The stamp is the list of pins itself: whoever changes a pin gets the new files, and a set-up with
  # CUDA also serves those who asked for the processor alone.
  for wanted in "$pins" scripts/libtorch/cuda.txt; do
    cmp --silent "$wanted" "$stamp" && return 0
  done
  local hint='530 MB to download, 520 MB on disk, a minute or less on a fast line'
  [ "$variant" = cpu ] || hint='2.4 GB to download, 4 GB on disk, some minutes'
  say "fetching libtorch into .libtorch/ ($hint)"

  # Everything is put together aside and takes its place by one rename, so an interrupted set-up
  # leaves nothing that looks finished.
  local aside
  rm -rf .libtorch.new.*
  aside=$(mktemp -d "$PWD/.libtorch.new.XXXXXX")
  chmod 755 "$aside"
  # shellcheck disable=SC2064  # the folder's name is meant to be fixed now
  trap "rm -rf '$aside'" EXIT
  scripts/fetch_wheels.sh "$pins" "$aside/wheels"
  local wheel
  for wheel in "$aside"/wheels/*.whl; do
    case "$variant-${wheel##*/}" in
      cpu-torch-*)
        unzip -qo "$wheel" 'torch/include/*' torch/lib/libtorch.so torch/lib/libtorch_cpu.so torch/lib/libc10.so \
          'torch/lib/libgomp*' -d "$aside" ;;
      # The two small libraries that libtorch_cpu.so is linked with even where there is no GPU.
      cpu-nvidia_cuda_runtime-*) unzip -qo "$wheel" 'nvidia/cu13/lib/libcudart.so.13' -d "$aside" ;;
      cpu-nvidia_cuda_cupti-*) unzip -qo "$wheel" 'nvidia/cu13/lib/libcupti.so.13' -d "$aside" ;;
      cuda-torch-*) unzip -qo "$wheel" 'torch/include/*' 'torch/lib/*' -d "$aside" ;;
      cuda-*) unzip -qo "$wheel" 'nvidia/*' -d "$aside" ;;
    esac
  done
  rm -rf "$aside/wheels"
  check_libtorch "$aside"
  cp "$pins" "$aside/.pins"
  rm -rf .libtorch
  mv "$aside" .libtorch
  trap - EXIT
}

# The wheel carries no version file, so the version is read where the compiler reads it.
check_libtorch() { # $1: folder
  local wanted found
  wanted=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "scripts/libtorch/$variant.txt")
  found=$(awk '/^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) / { v = v "." $3 } END { print substr(v, 2) }' \
    "$1/torch/include/torch/headeronly/version.h")
  [ "$found" = "$wanted" ] || die "libtorch says it is version '$found', but $wanted is needed: the pins in scripts/libtorch/ do not fit together"
  ldd "$1/torch/lib/libtorch_cpu.so" | grep 'not found' >&2 &&
    die 'libtorch_cpu.so does not find the libraries above'
  return 0
}

if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
  install_debian_packages
else
  check_elsewhere
fi
command -v cargo >/dev/null ||
  die 'cargo is not in PATH: install Rust with rustup, https://rustup.rs, and run this again'
install_libtorch
say 'ready'
