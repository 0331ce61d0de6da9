#!/usr/bin/env bash
# Prints the Secret of deploy/secret.example.yaml with random words for the braces, the same word for the same name:
#
#   scripts/make_secret.sh | kubectl create -f -
#
#   MONGO_URI=mongodb://…   with a database of your own, its URI
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

secret=$(<deploy/secret.example.yaml)
while [[ $secret =~ \{([a-z-]+)\} ]]; do
  word=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
  secret=${secret//"{${BASH_REMATCH[1]}}"/$word}
done
if [ -n "${MONGO_URI:-}" ]; then
  # Quoted as JSON, which YAML is a superset of.
  uri=${MONGO_URI//\\/\\\\}
  uri=${uri//\"/\\\"}
  secret=$(MONGO=$uri awk '/^  (keda-)?mongo-uri:/ { print "  " $1 " \"" ENVIRON["MONGO"] "\""; next } { print }' <<<"$secret")
fi
printf '%s\n' "$secret"
