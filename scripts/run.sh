#!/bin/sh
# Runs a system, with its log and its curves: scripts/run.sh --help
exec "$(dirname -- "$0")/kata.sh" run "$@"
