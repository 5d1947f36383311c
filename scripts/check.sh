#!/bin/sh
# Tests your file once: scripts/check.sh --help
exec "$(dirname -- "$0")/kata.sh" check "$@"
