#!/bin/sh
# Writes your history as one file: scripts/export.sh --help
exec "$(dirname -- "$0")/kata.sh" export "$@"
