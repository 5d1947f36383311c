#!/bin/sh
# Runs the project's own tests: style, types, every tool, every kata. A learner's edits change nothing.
set -eu

usage() {
    cat <<'END'
usage: scripts/test.sh [--all] [PYTEST OPTION]...

Runs the project's own tests: style and types, the tools, every kata's bugs. Some ten minutes on
two cores; what an earlier run proved of a kata is not proved again until something it rests on
changes.

  --all     the full check, as CI runs it, an hour or so: also the slow tests (kills,
            terminals, endless loops), every test of every bug's killed_by, and a sample of mutants
  --help    this text

Other options go to pytest, for the tools' tests.
Example: scripts/test.sh -k history
END
}

ALL=
for argument; do
    shift
    case $argument in
    -h | --help)
        usage
        exit
        ;;
    --all) ALL=yes ;;
    *) set -- "$@" "$argument" ;;
    esac
done

step() { echo "== $*" >&2; }

EXTRAS="[dev]"
. "$(dirname -- "$0")/setup.sh"
cd "$ROOT"
step "style and types"
"$PYTHON" -m ruff check --quiet .
"$PYTHON" -m ruff format --check --quiet .
"$PYTHON" -m mypy
if [ "$ALL" ]; then
    step "the tools, the slow tests among them: some twenty-five minutes on two cores"
    "$PYTHON" -m pytest scripts/tests -n auto --dist worksteal -q "$@"
    step "every kata: each test of each bug's killed_by, alone and in every pair: some forty minutes"
    "$PYTHON" -m dojo verify --whole
    step "a sample of mutants: five minutes"
    "$PYTHON" -m dojo verify --mutants --sample 16
else
    step "the tools: four to seven minutes on two cores (--all runs the slow tests too)"
    "$PYTHON" -m pytest scripts/tests -n auto --dist worksteal -q -m "not slow" "$@"
    step "every kata, unless it is as an earlier run proved it: three to five minutes"
    "$PYTHON" -m dojo verify
fi
