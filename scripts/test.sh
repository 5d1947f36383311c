#!/bin/sh
# Runs the project's own tests: style, types, every tool, every kata. A learner's edits change nothing.
set -eu
EXTRAS="[dev]"
. "$(dirname -- "$0")/setup.sh"
cd "$ROOT"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check --quiet .
"$PYTHON" -m mypy
"$PYTHON" -m pytest scripts/tests -n auto --dist worksteal -q "$@"
"$PYTHON" -m dojo verify
"$PYTHON" -m dojo verify --mutants --sample 16
