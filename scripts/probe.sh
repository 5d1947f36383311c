#!/bin/sh
# Shows what happens inside your model as it runs: scripts/probe.sh --help
exec "$(dirname -- "$0")/kata.sh" probe "$@"
