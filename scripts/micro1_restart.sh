#!/usr/bin/env bash
# Microservice 1, pre: builds, tags, pushes, applies, rolls out, waits. restart_service.sh says what may be set.
exec "$(dirname "${BASH_SOURCE[0]}")/restart_service.sh" pre
