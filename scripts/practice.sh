#!/bin/sh
# Starts a timed practice session: scripts/practice.sh --help
exec "$(dirname -- "$0")/kata.sh" practice "$@"
