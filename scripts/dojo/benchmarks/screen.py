"""Times what a person waits for beside verdicts: a screen, a key, the next request to review."""

import sys
import time
from dataclasses import dataclass
from statistics import median

from dojo.benchmarks.copies import left_as_found
from dojo.benchmarks.terminal import PATIENCE_SECONDS, in_terminal
from dojo.kata.kata import Kata
from dojo.project import Project

_BETWEEN_KEYS_SECONDS = 0.3  # a key a time, as a person presses them
_READING_SECONDS = 1.0  # far less than a person reads


@dataclass(frozen=True)
class Waits:
    """Seconds from `kata practice` to its first screen, and from a key to its answer."""

    first_screen: float
    key: float


def practice_screen(project: Project, kata: Kata, keys: int) -> Waits:
    """Start a session, and press keys while tests run: the file under test takes long to load."""
    command = [sys.executable, "-m", "dojo", "practice", kata.name]
    with left_as_found(project, kata):
        started = time.monotonic()
        with in_terminal(command, project) as terminal:
            terminal.wait_for("a first screen", "planted")
            first_screen = time.monotonic() - started
            terminal.wait_for("a first verdict", "revision")
            slow = f"import time\ntime.sleep({PATIENCE_SECONDS})\n"
            kata.botched.write_text(slow, encoding="utf-8")
            terminal.wait_for("a run", "running")
            seconds = []
            for _ in range(keys):
                time.sleep(_BETWEEN_KEYS_SECONDS)
                terminal.forget()  # while the clock stands, each of its ticks says "paused"
                pressed = time.monotonic()
                terminal.press("p")
                terminal.wait_for("a pause", "paused")
                seconds.append(time.monotonic() - pressed)
                terminal.press("p")
            return Waits(first_screen, median(seconds))


def next_request(project: Project, kata: Kata, requests: int) -> float:
    """Return the median seconds from Enter to the next request to review, of any kata."""
    count = requests + 1
    command = [sys.executable, "-m", "dojo", "review", f"--count={count}", "--seed=1"]
    with left_as_found(project, kata), in_terminal(command, project) as terminal:
        terminal.wait_for("a request", "Mark what")
        seconds = []
        for _ in range(requests):
            time.sleep(_READING_SECONDS)
            terminal.press("a")
            terminal.wait_for("the truth", "Enter goes on")
            time.sleep(_BETWEEN_KEYS_SECONDS)
            terminal.forget()
            pressed = time.monotonic()
            terminal.press("\r")
            terminal.wait_for("a request", "Mark what")
            seconds.append(time.monotonic() - pressed)
        return median(seconds)
