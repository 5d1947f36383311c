#!/bin/sh
# Tests a kata at every save: scripts/watch.sh --help
exec "$(dirname -- "$0")/kata.sh" watch "$@"
