#!/bin/sh
# Brings back an earlier text of yours: scripts/undo.sh --help
exec "$(dirname -- "$0")/kata.sh" undo "$@"
