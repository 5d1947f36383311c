#!/bin/sh
# Shows where your results are wrong, as heat maps: scripts/show.sh --help
exec "$(dirname -- "$0")/kata.sh" show "$@"
