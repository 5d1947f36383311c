"""Single keys from a terminal, without waiting for Return."""

import os
import select
import sys
import threading
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

try:
    import termios
    import tty
except ImportError:  # Windows
    _POSIX = False
else:
    _POSIX = True


class Keys:
    """Reads keys from the terminal, in a thread."""

    def __init__(self, press: Callable[[str], None]) -> None:
        """Call `press` for each key, once reading begins."""
        self._press = press
        self._descriptor = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._descriptor)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Leave the terminal, as it was found, to somebody else while the block runs."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def start(self) -> None:
        """Set the terminal up, and read."""
        tty.setcbreak(self._descriptor)
        self._stop.clear()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no more, and put the terminal back as it was."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        with suppress(termios.error):  # it may be gone
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def _read(self) -> None:
        while not self._stop.is_set():
            if select.select([self._descriptor], [], [], 0.1)[0]:
                try:
                    typed = os.read(self._descriptor, 64)
                except OSError:
                    typed = b""
                if not typed:  # for ever, from now on
                    interrupt_main()
                    return
                for character in typed.decode(errors="ignore"):
                    self._press(character)


@contextmanager
def key_presses(press: Callable[[str], None]) -> Iterator[Keys | None]:
    """Call `press` for each key while the block runs; yield what reads them, if anything can.

    They can be read where standard input and output are a terminal that POSIX can set up. Ctrl-C
    and Ctrl-Z keep their meaning, and the terminal is put back as it was. Where it goes away, it is
    as if Ctrl-C had been pressed.
    """
    if not (_POSIX and sys.stdin.isatty() and sys.stdout.isatty()):
        yield None
        return
    keys = Keys(press)
    try:
        keys.start()
        yield keys
    finally:
        keys.stop()
