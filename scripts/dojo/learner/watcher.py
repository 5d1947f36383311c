"""Tests a learner's file at every save, without a screen: saves and keys in, results out."""

import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dojo.errors import DojoError
from dojo.files import revision
from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.learner.counting import Count, by_runs, count_gone
from dojo.learner.saves import saves, seen_now
from dojo.runner.log import RunLog
from dojo.runner.runner import Runner
from dojo.testrun.results import RunResult, TestResult, Verdict, failed_functions


@dataclass(frozen=True)
class Ran:
    """The tests ran on the file's newest text."""

    result: RunResult


@dataclass(frozen=True)
class Counted:
    """The planted bugs that are gone from a text are counted."""

    count: Count
    revision: str  # of the text


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
class Typed:
    """A line was typed, in an interface that takes lines in place of keys."""

    line: str


@dataclass(frozen=True)
class Logged:
    """A system ran for its log."""

    log: RunLog


@dataclass(frozen=True)
class Later:
    """What came of some work that was done meanwhile."""

    result: object


@dataclass(frozen=True)
class Tick:
    """Nothing happened for a while."""


Happening = Ran | Counted | Started | Failed | Logged | Key | Typed | Later | Tick


class _Saved:
    """The file has a new content."""


class _Idle:
    """The runner has nothing to do."""


class Watching:
    """Runs a kata's tests now and at each save; a save during a run starts it anew.

    The result that comes out is always that of the newest text: its revision says which. Once it
    is out, a system runs for its log, and the planted bugs that are gone are counted, unless the
    file is saved again. Every run has the same random data, so that numbers compare from save to
    save, until other data is asked for.
    """

    def __init__(self, kata: Kata, runner: Runner, planted: Sequence[Bug]) -> None:
        """Prepare; `watching` starts it."""
        self.planted = planted
        self._kata = kata
        self._runner = runner
        self._happened: queue.SimpleQueue[Happening | _Saved | _Idle | DojoError] = (
            queue.SimpleQueue()
        )
        self._stop = threading.Event()
        self._running = False
        self._again = False
        self._told = threading.Event()  # once the result of a run has been taken out
        self._seed = secrets.randbelow(2**31)
        self._failing: set[str] = set()  # likely to fail again, so these come first
        # Read here, before the first run can start: whatever is saved later is a save.
        self._seen = seen_now(kata.botched)

    def press(self, character: str) -> None:
        """Take a key, from any thread."""
        self._happened.put(Key(character))

    def type(self, line: str) -> None:
        """Take a line, from any thread."""
        self._happened.put(Typed(line))

    def reseed(self) -> None:
        """Run the tests on other random data, now and from now on; from any thread."""
        self._seed = secrets.randbelow(2**31)
        self._happened.put(_Saved())

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
            elif isinstance(event, _Idle):
                self._running = False
                if self._again:
                    self._again = False
                    self._start()
            elif isinstance(event, Ran):
                if event.result.verdict is Verdict.CANCELLED:
                    self._again = True
                elif not self._again:
                    if event.result.whole:
                        self._failing = failed_functions(event.result.tests)
                    yield event
                self._told.set()
            elif isinstance(event, Failed | Logged | Counted):
                if not self._again:  # else it is about an older text
                    yield event
            elif isinstance(event, DojoError):
                raise event
            else:
                yield event

    def later(self, work: Callable[[], object]) -> None:
        """Do some work in a thread of its own; what comes of it happens once it is done.

        That may be a `DojoError`.
        """

        def do() -> None:
            try:
                result = work()
            except DojoError as error:
                result = error
            self._happened.put(Later(result))

        threading.Thread(target=do, daemon=True).start()

    def follow_saves(self) -> None:
        """Wait for saves until stopped; runs in a thread of its own."""
        for _ in saves(self._kata.botched, self._seen, self._stop):
            self._happened.put(_Saved())

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        self._told.set()
        if self._running:
            self._runner.cancel()

    def _start(self) -> None:
        self._running = True
        self._told.clear()
        threading.Thread(target=self._run, args=(self.planted,), daemon=True).start()

    def _run(self, planted: Sequence[Bug]) -> None:
        try:
            result = self._runner.run(
                self._kata,
                seed=self._seed,
                first=self._failing,
                tell_failure=lambda test: self._happened.put(Failed(test)),
            )
            self._happened.put(Ran(result))
            self._told.wait()  # what follows would take the processor from who shows it
            if self._stop.is_set():
                return
            if self._kata.is_system and result.whole:
                self._happened.put(Logged(self._runner.log(self._kata)))
            if result.verdict is Verdict.FAILED and planted:
                try:
                    self._count(planted, result.revision)
                except DojoError as error:  # it is told, and the next save is judged
                    self._happened.put(Later(error))
        except DojoError as error:
            self._happened.put(error)
        finally:
            self._happened.put(_Idle())

    def _count(self, planted: Sequence[Bug], tested: str) -> None:
        """Count the bugs that are gone, if the file still has the text that was tested."""
        content = seen_now(self._kata.botched) or b""
        if revision(content) != tested:
            return
        text = content.decode("utf-8", errors="replace")
        passes = by_runs(self._kata, self._runner, self._seed)
        count = count_gone(
            self._kata.correct_source,
            planted,
            text,
            # A save between two runs has none to cancel.
            lambda candidate, bug: None if self._again else passes(candidate, bug),
        )
        if count is not None:
            self._happened.put(Counted(count, tested))


@contextmanager
def watching(kata: Kata, runner: Runner, planted: Sequence[Bug]) -> Iterator[Watching]:
    """Follow the saves of a file in which these bugs were planted, for the length of the block."""
    watcher = Watching(kata, runner, planted)
    thread = threading.Thread(target=watcher.follow_saves, daemon=True)
    thread.start()
    try:
        yield watcher
    finally:
        watcher.stop()
        thread.join()
