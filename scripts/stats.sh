#!/bin/sh
# Shows what the practice so far adds up to: scripts/stats.sh --help
exec "$(dirname -- "$0")/kata.sh" stats "$@"
