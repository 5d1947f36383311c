#!/bin/sh
# Shows the answer and the bugs' stories: scripts/reveal.sh --help
exec "$(dirname -- "$0")/kata.sh" reveal "$@"
