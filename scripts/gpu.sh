#!/bin/sh
# Runs what needs a GPU, tests and timings, and prints one table: scripts/gpu.sh --help
exec "$(dirname -- "$0")/kata.sh" gpu "$@"
