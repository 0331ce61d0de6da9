#!/usr/bin/env bash
# Checks what is deployed: every overlay renders and fits the schemas of the oldest and the newest Kubernetes we support,
# the Dockerfiles pass hadolint and the scripts shellcheck. What these cannot see (settings, ports, references
# between manifests and code) is checked by the tests of crates/boxreel.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=.tools/kube/bin
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0
fail() { printf 'deploy: %s\n' "$*" >&2; failed=1; }

for source in deploy/base deploy/overlays/*; do
  rendered=$folder/$(basename "$source").yaml
  "$tools/kubectl" kustomize "$source" >"$rendered" || { fail "$source does not render"; continue; }
  for version in 1.25 1.37; do
    # By the interpreter, because a script of a virtual environment names the folder it was made in.
    said=$("$tools/python" "$tools/kubernetes-validate" --strict --quiet --kubernetes-version "$version" "$rendered" 2>&1) ||
      fail "$source does not fit Kubernetes $version"
    # KEDA's kinds are none of Kubernetes'; any other kind without a schema is a slip.
    if grep -v 'find schema for kind [A-Za-z]* with api version keda\.sh/' <<<"$said" | grep . >&2; then
      fail "the lines above are about $source and Kubernetes $version"
    fi
  done
done
"$tools/hadolint" Dockerfile.pre Dockerfile.infer Dockerfile.post || fail 'hadolint finds fault with the Dockerfiles'
"$tools/shellcheck" .ci/run scripts/*.sh scripts/*/*.sh || fail 'shellcheck finds fault with the scripts'
# Prometheus' own tool, where it is installed (Debian: prometheus).
if command -v promtool >/dev/null; then
  promtool check rules deploy/monitoring/alerts.yaml >"$folder/promtool" 2>&1 || { cat "$folder/promtool" >&2; fail 'the alert rules do not parse'; }
else
  echo 'deploy: promtool is not here, so the alert rules are only read as YAML'
fi
[ "$failed" = 0 ] && echo "deploy: $(find deploy/overlays -mindepth 1 -maxdepth 1 | wc -l) overlays and the base fit Kubernetes 1.25 and 1.37"
exit "$failed"
