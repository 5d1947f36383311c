#!/bin/sh
# Runs the `kata` command, making .venv the first time: scripts/kata.sh --help
set -eu
. "$(dirname -- "$0")/setup.sh"
exec "$PYTHON" -m dojo "$@"
