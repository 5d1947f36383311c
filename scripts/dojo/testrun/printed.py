"""Makes what code under test prints fit for a person's screen."""

import re

_LINES = 10
_CHARACTERS = 200  # of a line
# Colours and other sequences of terminals, and whatever else moves the cursor.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def folded(text: str) -> str:
    """Return the first lines of a text, and how many more there are."""
    lines = text.splitlines()
    shown = [printable(line) for line in lines[:_LINES]]
    more = len(lines) - len(shown)
    if more:
        shown.append(f"... {more:,} more {'line' if more == 1 else 'lines'}")
    return "\n".join(shown)


def printable(line: str) -> str:
    """Return a line without what moves the cursor or colours the screen, cut if it is long."""
    line = _CONTROL.sub("", line).expandtabs().rstrip()
    return line if len(line) <= _CHARACTERS else f"{line[:_CHARACTERS]} ..."
