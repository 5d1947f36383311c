"""The kinds of error that a person is meant to read, and the words that their messages share."""

import difflib
import os
from collections.abc import Collection

# Set by the installed `kata` command, for itself and for the processes that it starts.
TYPED = "KATA_TYPED"


class DojoError(Exception):
    """Something the person at the keyboard can put right; the message says what and how."""


class CatalogueError(DojoError):
    """A malformed file of a kata; the message names file, place and reason."""


def typed(name: str, *arguments: str) -> str:
    """Return a command as this person types it: `scripts/reset.sh 03`, or `kata reset 03`."""
    typed = f"kata {name}" if os.environ.get(TYPED) == "kata" else f"scripts/{name}.sh"
    return " ".join([typed, *arguments])


def nearest(word: str, known: Collection[str]) -> str:
    """Return the end of a message about an unknown word: the nearest known one, or all."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"
