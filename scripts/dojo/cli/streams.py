"""Standard input and output, which whoever starts a command may have closed."""

import os
import sys

_NAMES = ("stdin", "stdout", "stderr")


def open_missing() -> None:
    """Put nothing in the place of each standard stream that is closed.

    Else the next file to be opened takes its number, and what is printed ends up there.
    """
    for number, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
            os.set_inheritable(number, True)
            stream = os.fdopen(number, "r" if number == 0 else "w", closefd=False)
            setattr(sys, name, stream)
