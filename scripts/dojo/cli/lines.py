"""Lines from standard input, where single keys cannot be read."""

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TICK_SECONDS = 0.5


class Lines:
    """The lines on standard input, for whoever listens: one after another, never two at once."""

    def __init__(self) -> None:
        """Read nothing yet."""
        self._take: Callable[[str], None] | None = None
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._begun = False

    @contextmanager
    def to(self, take: Callable[[str], None]) -> Iterator[None]:
        """Have lines go there while the block runs, and what was typed before it too."""
        self._begin()
        with self._lock:
            self._take = take
            while not self._waiting.empty():
                take(self._waiting.get())
        try:
            yield
        finally:
            with self._lock:
                self._take = None

    def next_letter(self) -> str:
        """Wait for a line and return its first letter; empty also where no line comes any more."""
        self._begin()
        while True:
            try:
                return self._waiting.get(timeout=_TICK_SECONDS).strip()[:1].lower()
            except queue.Empty:
                if self._ended.is_set():
                    return ""

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            with self._lock:
                if self._take:
                    self._take(line)
                else:
                    self._waiting.put(line)
        self._ended.set()
