#!/bin/sh
# Runs a failing test in pdb: scripts/debug.sh --help
exec "$(dirname -- "$0")/kata.sh" debug "$@"
