#!/bin/sh
# Shows the katas and which are solved: scripts/list.sh --help
exec "$(dirname -- "$0")/kata.sh" list "$@"
