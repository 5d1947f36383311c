"""Single keys from a terminal, without waiting for Return."""

import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def key_presses(press: Callable[[str], None]) -> Iterator[bool]:
    """Call `press` for each key while the block runs; yield whether keys can be read at all.

    They can where standard input and output are a terminal that POSIX can set up. Ctrl-C and
    Ctrl-Z keep their meaning, and the terminal is put back as it was.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield False
        return
    try:
        import termios
        import tty
    except ImportError:  # Windows
        yield False
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            if select.select([descriptor], [], [], 0.1)[0]:
                for character in os.read(descriptor, 64).decode(errors="ignore"):
                    press(character)

    thread = threading.Thread(target=read, daemon=True)
    try:
        tty.setcbreak(descriptor)
        thread.start()
        yield True
    finally:
        stop.set()
        thread.join()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
