"""Times the way from a save to its verdict, ours and that of the tools used in its place."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from dojo.benchmarks.copies import left_as_found
from dojo.benchmarks.terminal import in_terminal
from dojo.kata.kata import Kata
from dojo.kata.proof_template import proof_template
from dojo.project import Project

_PAUSE_SECONDS = 1.0  # as a person leaves between saves, and longer than a watcher's own pause
_PYTEST_VERDICT = r"(passed|failed).* in [\d.]+s"


@dataclass(frozen=True)
class Waits:
    """Median seconds from a save until the screen shows the first failing test, and so on."""

    failure: float
    verdict: float  # what came of every test
    count: float  # which planted bugs are gone


def ours(project: Project, kata: Kata, saves: int) -> Waits:
    """Save under `kata watch`."""
    command = [sys.executable, "-m", "dojo", "watch", kata.name]
    return _watched(
        command,
        project,
        kata,
        saves,
        r"\[\d\d:\d\d:\d\d\] .*$",
        r"q quit",  # it has shown its keys once it waits for the next save
        failure=r"^  fails: ",
        count=rf"^{kata.name}: .* fixed",
    )


def proof(project: Project, kata: Kata, saves: int) -> float:
    """Return the median seconds from a save of a proof to its verdict under `kata prove`."""
    text = proof_template(kata)

    def save(number: int) -> None:
        kata.proof.write_text(f"{text}\n# save {number}\n", encoding="utf-8")

    command = [sys.executable, "-m", "dojo", "prove", kata.name, "--seed", "1"]
    verdict = r"wrong versions? caught"
    return _watched(command, project, kata, saves, verdict, r"q quit", save=save).verdict


def cold_pytest(project: Project, kata: Kata, saves: int) -> float:
    """Return the median seconds from a save to the verdict of a `pytest` started just then."""
    command = [sys.executable, "-m", "pytest", f"katas/{kata.name}", "-q"]
    with left_as_found(project, kata):
        seconds = []
        for number in range(saves):
            started = time.monotonic()
            _save(kata, number)
            with in_terminal(command, project) as terminal:
                terminal.wait_for("a verdict", _PYTEST_VERDICT)
                seconds.append(time.monotonic() - started)
        return median(seconds)


def pytest_watcher(project: Project, kata: Kata, saves: int) -> float:
    """Return the median seconds from a save to pytest's last line under pytest-watcher."""
    folder = f"katas/{kata.name}"
    # Its own pattern, *.py, matches no path that has a folder in it since watchdog 7.
    watcher = [sys.executable, "-m", "pytest_watcher", "--now", "--patterns", "**/*.py", folder]
    # It forgets a save that comes before pytest has ended, which on a busy machine can be seconds
    # after pytest's last line; it shows how to get its menu when it watches again.
    ready = r"Press w to show menu"
    command = [*watcher, folder, "-q"]
    return _watched(command, project, kata, saves, _PYTEST_VERDICT, ready).verdict


def _watched(
    command: list[str],
    project: Project,
    kata: Kata,
    saves: int,
    verdict: str,
    ready: str,
    failure: str = "",
    count: str = "",
    save: Callable[[int], None] | None = None,
) -> Waits:
    """Run a watcher, save again and again, and wait for its first failures and its verdicts."""
    with left_as_found(project, kata), in_terminal(command, project) as terminal:
        terminal.wait_for("a verdict", verdict)  # of its first run
        terminal.wait_for("its keys", ready)
        failures, verdicts, counts = [], [], []
        for number in range(saves):
            time.sleep(_PAUSE_SECONDS)
            terminal.forget()
            started = time.monotonic()
            save(number) if save else _save(kata, number)
            terminal.wait_for("a failure", failure)
            failures.append(time.monotonic() - started)
            terminal.wait_for("a verdict", verdict)
            verdicts.append(time.monotonic() - started)
            terminal.wait_for("a count", count)
            counts.append(time.monotonic() - started)
            terminal.wait_for("its keys", ready)
        return Waits(median(failures), median(verdicts), median(counts))


def _save(kata: Kata, number: int) -> None:
    """Write the planted text with a comment that no earlier save had."""
    text = f"{kata.planted_source(kata.default)}\n# save {number}\n"
    kata.botched.write_text(text, encoding="utf-8")
