#!/bin/sh
# Gives the next hint: scripts/hint.sh --help
exec "$(dirname -- "$0")/kata.sh" hint "$@"
