#!/bin/sh
# Makes the skeleton of a new kata: scripts/new.sh --help
exec "$(dirname -- "$0")/kata.sh" new "$@"
