"""Tests a learner's file at every save, without a screen: saves and keys in, results out."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dojo.errors import DojoError
from dojo.files import read_bytes
from dojo.kata.kata import Kata
from dojo.learner.saves import saves
from dojo.runner.runner import Runner
from dojo.testrun.results import Outcome, RunResult, TestResult, Verdict


@dataclass(frozen=True)
class Ran:
    """The tests ran on the file's newest text."""

    result: RunResult


@dataclass(frozen=True)
class Started:
    """A run began."""


@dataclass(frozen=True)
class Failed:
    """A test failed in a run that goes on, the first to do so."""

    test: TestResult


@dataclass(frozen=True)
class Key:
    """A key was pressed."""

    character: str


@dataclass(frozen=True)
class Tick:
    """Nothing happened for a while."""


Happening = Ran | Started | Failed | Key | Tick


class _Saved:
    """The file has a new content."""


class Watching:
    """Runs a kata's tests now and at each save; a save during a run starts it anew.

    The result that comes out is always that of the newest text: its revision says which.
    """

    def __init__(self, kata: Kata, runner: Runner) -> None:
        """Prepare; `watching` starts it."""
        self._kata = kata
        self._runner = runner
        self._happened: queue.SimpleQueue[Happening | _Saved | DojoError] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._running = False
        self._again = False
        self._failing: set[str] = set()  # likely to fail again, so these come first
        # Read here, before the first run can start: whatever is saved later is a save.
        self._seen = read_bytes(kata.botched)

    def press(self, character: str) -> None:
        """Take a key, from any thread."""
        self._happened.put(Key(character))

    def events(self, tick_seconds: float) -> Iterator[Happening]:
        """Yield what happens, from a first run on; a tick where nothing does."""
        self._happened.put(_Saved())
        while True:
            try:
                event = self._happened.get(timeout=tick_seconds)
            except queue.Empty:
                yield Tick()
                continue
            if isinstance(event, _Saved):
                if self._running:
                    self._again = True
                    self._runner.cancel()
                else:
                    yield Started()
                    self._start()
            elif isinstance(event, Ran):
                self._running = False
                if self._again or event.result.verdict is Verdict.CANCELLED:
                    self._again = False
                    self._start()
                else:
                    if event.result.whole:
                        self._failing = _failed(event.result)
                    yield event
            elif isinstance(event, Failed):
                if not self._again:  # else it is about an older text
                    yield event
            elif isinstance(event, DojoError):
                raise event
            else:
                yield event

    def follow_saves(self) -> None:
        """Wait for saves until stopped; runs in a thread of its own."""
        for _ in saves(self._kata.botched, self._seen, self._stop):
            self._happened.put(_Saved())

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        if self._running:
            self._runner.cancel()

    def _start(self) -> None:
        self._running = True
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            result = self._runner.run(
                self._kata,
                first=self._failing,
                tell_failure=lambda test: self._happened.put(Failed(test)),
            )
            self._happened.put(Ran(result))
        except DojoError as error:
            self._happened.put(error)


def _failed(result: RunResult) -> set[str]:
    """Return the test functions that failed; not those that did not end: they end the run."""
    return {test.function for test in result.tests if test.outcome is Outcome.FAILED}


@contextmanager
def watching(kata: Kata, runner: Runner) -> Iterator[Watching]:
    """Follow the file's saves for the length of the block."""
    watcher = Watching(kata, runner)
    thread = threading.Thread(target=watcher.follow_saves, daemon=True)
    thread.start()
    try:
        yield watcher
    finally:
        watcher.stop()
        thread.join()
