"""Single keys from a terminal, without waiting for Return."""

import os
import select
import sys
import threading
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def key_presses(press: Callable[[str], None]) -> Iterator[bool]:
    """Call `press` for each key while the block runs; yield whether keys can be read at all.

    They can where standard input and output are a terminal that POSIX can set up. Ctrl-C and
    Ctrl-Z keep their meaning, and the terminal is put back as it was. Where it goes away, it is as
    if Ctrl-C had been pressed.
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
                try:
                    typed = os.read(descriptor, 64)
                except OSError:
                    typed = b""
                if not typed:  # for ever, from now on
                    interrupt_main()
                    return
                for character in typed.decode(errors="ignore"):
                    press(character)

    thread = threading.Thread(target=read, daemon=True)
    try:
        tty.setcbreak(descriptor)
        thread.start()
        yield True
    finally:
        stop.set()
        thread.join()
        with suppress(termios.error):  # it may be gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
