"""The loop of a proof, without a screen: saves and keys go in, events come out."""

import queue
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto

from dojo.errors import DojoError
from dojo.history.sessions import Ending
from dojo.learner.saves import saves, seen_now
from dojo.practice.judging import ProofJudgement, judge
from dojo.practice.proving import ProofDebrief, ProofHint, Prover
from dojo.runner.pool import Pool
from dojo.testrun.results import TestResult


class ProofAction(Enum):
    """What a learner asks for."""

    HINT = auto()
    CLAIM = auto()
    REVEAL = auto()
    QUIT = auto()


@dataclass(frozen=True)
class ProofJudged:
    """The newest text is judged."""

    judgement: ProofJudgement
    left: float | None  # seconds, where there is a clock


@dataclass(frozen=True)
class SurvivorHinted:
    """Something is told of a wrong version that no test catches."""

    hint: ProofHint


@dataclass(frozen=True)
class ClaimRefuted:
    """A version that was claimed to be correct is not."""

    counter_example: TestResult


@dataclass(frozen=True)
class ProofRefused:
    """What was asked for cannot be done."""

    reason: str


@dataclass(frozen=True)
class ProofOver:
    """The proof has ended; without a debrief, the learner left it."""

    debrief: ProofDebrief | None = None


ProofEvent = ProofJudged | SurvivorHinted | ClaimRefuted | ProofRefused | ProofOver


class _Saved:
    """The proof has a new content."""


_Happening = _Saved | str | ProofJudgement | DojoError | None


class ProofLoop:
    """Judges a proof now and at each save; a save meanwhile starts anew."""

    def __init__(self, prover: Prover, pool: Pool) -> None:
        """Prepare; `proving` starts it."""
        self._prover = prover
        self._pool = pool
        self._happened: queue.SimpleQueue[_Happening] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._running = False
        self._again = False
        self._seen = seen_now(prover.kata.proof)

    def press(self, character: str) -> None:
        """Take a key, or a line's first letter, from any thread."""
        self._happened.put(character[:1])

    def follow_saves(self) -> None:
        """Wait for saves until stopped; runs in a thread of its own."""
        for _ in saves(self._prover.kata.proof, self._seen, self._stop):
            self._happened.put(_Saved())

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        if self._running:
            self._pool.cancel()

    def events(self, keys: Mapping[str, ProofAction], tick_seconds: float) -> Iterator[ProofEvent]:
        """Yield what comes of all that happens, from a first verdict on, until it is over."""
        self._happened.put(_Saved())
        while True:
            try:
                happened = self._happened.get(timeout=tick_seconds)
                events = list(self._handle(happened, keys))
            except queue.Empty:
                events = []
            except DojoError as error:
                events = [ProofRefused(str(error))]
            left = self._prover.left()
            if left is not None and left <= 0:
                events.append(ProofOver(self._prover.end(Ending.MISSED)))
            for event in events:
                yield event
                if isinstance(event, ProofOver):
                    return

    def _handle(
        self, happened: _Happening, keys: Mapping[str, ProofAction]
    ) -> Iterator[ProofEvent]:
        match happened:
            case _Saved():
                self._judge_anew()
            case ProofJudgement() as judgement:
                self._end_of_run()
                reached = self._prover.record(judgement)
                yield ProofJudged(judgement, self._prover.left())
                if reached:
                    yield ProofOver(self._prover.end(Ending.SOLVED))
            case None:  # it was cancelled
                self._end_of_run()
            case DojoError() as error:
                self._end_of_run()
                raise error
            case character:
                yield from self._asked(keys.get(character))

    def _asked(self, action: ProofAction | None) -> Iterator[ProofEvent]:
        match action:
            case ProofAction.HINT:
                yield SurvivorHinted(self._prover.hint(self._pool))
            case ProofAction.CLAIM:
                yield ClaimRefuted(self._prover.claim(self._pool))
            case ProofAction.REVEAL:
                yield ProofOver(self._prover.end(Ending.REVEALED))
            case ProofAction.QUIT:
                yield ProofOver()
            case None:
                pass

    def _judge_anew(self) -> None:
        if self._running:
            self._again = True
            self._pool.cancel()
            return
        self._running = True
        threading.Thread(target=self._judge, daemon=True).start()

    def _judge(self) -> None:
        kata, bugs, seed = self._prover.kata, self._prover.bugs, secrets.randbelow(2**31)
        try:
            self._happened.put(judge(self._pool, kata, bugs, kata.proof, seed, lambda: self._again))
        except DojoError as error:
            self._happened.put(error)

    def _end_of_run(self) -> None:
        self._running = False
        if self._again:
            self._again = False
            self._judge_anew()


@contextmanager
def proving(prover: Prover, pool: Pool) -> Iterator[ProofLoop]:
    """Follow the saves of a proof for the length of the block."""
    loop = ProofLoop(prover, pool)
    thread = threading.Thread(target=loop.follow_saves, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.stop()
        thread.join()
