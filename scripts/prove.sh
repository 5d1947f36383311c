#!/bin/sh
# Write the tests that expose a kata's bugs: scripts/prove.sh --help
exec "$(dirname -- "$0")/kata.sh" prove "$@"
