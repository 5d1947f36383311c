#!/bin/sh
# Plants a kata's bugs again: scripts/reset.sh --help
exec "$(dirname -- "$0")/kata.sh" reset "$@"
