#!/bin/sh
# Merges another machine's history into this one's: scripts/import.sh --help
exec "$(dirname -- "$0")/kata.sh" import "$@"
