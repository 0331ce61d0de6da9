#!/usr/bin/env bash
# Microservice 2, infer: builds, tags, pushes, applies, rolls out, waits. restart_service.sh says what may be set.
exec "$(dirname "${BASH_SOURCE[0]}")/restart_service.sh" infer
