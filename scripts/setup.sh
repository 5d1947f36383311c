# Sourced by the other scripts: makes .venv when it is missing or out of date, and sets $PYTHON.
# EXTRAS, if set, names what to install beyond a learner's needs, such as "[dev]".

ROOT=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
VENV=$ROOT/.venv
EXTRAS=${EXTRAS:-}

# What the environment was made from: a change of any of these makes it anew.
wanted_stamp() {
    echo "$ROOT"
    cksum <"$ROOT/pyproject.toml"
    cksum <"$ROOT/scripts/constraints.txt"
}

find_python() {
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer, with its venv module, is needed and was not found." >&2
    return 1
}

PYTHON=$VENV/bin/python
STAMP=$VENV/installed${EXTRAS:+-dev}
if [ "$(cat "$STAMP" 2>/dev/null)" != "$(wanted_stamp)" ] || ! [ -x "$PYTHON" ]; then
    SYSTEM_PYTHON=$(find_python)
    "$SYSTEM_PYTHON" "$ROOT/scripts/environment.py" "$(wanted_stamp)" "$EXTRAS"
fi
