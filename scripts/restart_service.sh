#!/usr/bin/env bash
# Builds the image of one service, tags and pushes it, applies the service's manifests with it, and waits until the new
# pods run. micro1_restart.sh (pre), micro2_restart.sh (infer) and micro3_restart.sh (post) call it.
#
#   scripts/restart_service.sh pre|infer|post
#
#   REGISTRY=registry.example:5000   where images are pushed to; without it they are only built
#   TAG=…                            by default the commit, with the time where the tree has changes
#   OVERLAY=deploy/overlays/gpu      what is applied; by default deploy/base
#   ENGINE=docker|podman|buildah     by default the first of these that is there
#   BUILD_OPTIONS='--network host'   further options of the build
#   LOAD='kind load docker-image'    a command that brings an image to the cluster where there is no registry
#   TIMEOUT=10m                      how long the new pods may take
#
# Install everything once before (docs/operations.md): only what belongs to the service itself is applied here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s: %s\n' "$service" "$*"; }
die() { printf 'restart: %s\n' "$*" >&2; exit 1; }

service=${1:-}
[[ "$service" =~ ^(pre|infer|post)$ ]] || die 'name the service: pre, infer or post'
overlay=${OVERLAY:-deploy/base}
[ -d "$overlay" ] || die "there is no folder $overlay: OVERLAY names one of deploy/overlays/"
command -v kubectl >/dev/null || die 'kubectl is not in PATH'

engine=${ENGINE:-}
if [ -z "$engine" ]; then
  for engine in docker podman buildah; do
    command -v "$engine" >/dev/null && break
    engine=
  done
  [ -n "$engine" ] || die 'neither docker nor podman nor buildah is in PATH'
fi

revision=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
if [ -n "$(git status --porcelain 2>/dev/null)" ]; then
  revision+=-$(date -u +%Y%m%d%H%M%S)
fi
name=${REGISTRY:+${REGISTRY%/}/}boxreel/$service
image=$name:${TAG:-$revision}

options=(--file "Dockerfile.$service" --tag "$image" --build-arg "REVISION=$revision" --build-arg "VERSION=${TAG:-$revision}")
# An overlay that asks for a GPU gets the image that can use it.
if [ "$service" = infer ] && kubectl kustomize "$overlay" | grep -q 'nvidia.com/gpu:'; then
  options+=(--build-arg LIBTORCH=cuda)
fi
# shellcheck disable=SC2206  # meant to be split
options+=(${BUILD_OPTIONS:-})
say "building $image"
case "${engine##*/}" in
  docker) "$engine" build "${options[@]}" . ;;
  # Their own format has no health checks.
  podman) "$engine" build --format docker "${options[@]}" . ;;
  buildah) "$engine" bud --format docker --layers "${options[@]}" . ;;
  *) die "ENGINE is docker, podman or buildah, not $engine" ;;
esac
if [ -n "${REGISTRY:-}" ]; then
  say "pushing $image"
  "$engine" push "$image"
fi
if [ -n "${LOAD:-}" ]; then
  # shellcheck disable=SC2086  # a command with arguments
  $LOAD "$image"
fi

# The overlay as it is, but for this image; and of it only what belongs to the service.
folder=$(mktemp -d deploy/.restart.XXXXXX)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/kustomization.yaml" <<YAML
resources: [$(realpath --relative-to="$folder" "$overlay")]
images: [{ name: boxreel/$service, newName: $name, newTag: "${image##*:}" }]
YAML
generation() { kubectl --namespace boxreel get deployment "$service" --output 'jsonpath={.metadata.generation}' 2>/dev/null || true; }
before=$(generation)
say "applying $overlay"
kubectl kustomize "$folder" | kubectl apply --selector "app.kubernetes.io/component=$service" --filename -
if [ "$(generation)" = "$before" ]; then
  # Nothing in the manifests has changed, such as when TAG is a word that stays: the image may have.
  kubectl --namespace boxreel rollout restart "deployment/$service"
fi
kubectl --namespace boxreel rollout status "deployment/$service" --timeout "${TIMEOUT:-10m}"
