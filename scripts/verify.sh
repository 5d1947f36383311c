#!/bin/sh
# Proves that katas can be trusted: scripts/verify.sh --help
exec "$(dirname -- "$0")/kata.sh" verify "$@"
