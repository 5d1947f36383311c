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

# The first that can make an environment; or the first that is new enough, and is told what it lacks.
find_python() {
    for modules in "venv, ensurepip" venv; do
        for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
            if "$candidate" -c "import sys, $modules; sys.exit(sys.version_info < (3, 11))" \
                2>/dev/null; then
                echo "$candidate"
                return
            fi
        done
    done
    echo "Python 3.11 or newer, with its venv module, is needed: install it, then run this again." >&2
    return 1
}

PYTHON=$VENV/bin/python
STAMP=$VENV/installed${EXTRAS:+-dev}
if [ "$(cat "$STAMP" 2>/dev/null)" != "$(wanted_stamp)" ] || ! [ -x "$PYTHON" ]; then
    SYSTEM_PYTHON=$(find_python)
    "$SYSTEM_PYTHON" "$ROOT/scripts/environment.py" "$(wanted_stamp)" "$EXTRAS"
fi
