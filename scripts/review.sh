#!/bin/sh
# Shows pull requests, in which you find bugs by reading: scripts/review.sh --help
exec "$(dirname -- "$0")/kata.sh" review "$@"
