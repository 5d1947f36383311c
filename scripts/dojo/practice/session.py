"""A timed practice session, without a screen: katas one after another, each against its time.

All that happens is recorded at once, so that a session can be taken up again whatever ended it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from enum import Enum, auto

from filelock import FileLock, Timeout

from dojo.errors import DojoError
from dojo.history.history import History, Run
from dojo.history.sessions import Ending, Exercise, Session
from dojo.kata import kata_toml
from dojo.kata.kata import Kata
from dojo.learner.player import Judgement, Player
from dojo.practice import scheduler
from dojo.practice.debrief import Debrief, debrief
from dojo.practice.planning import Planned
from dojo.practice.stopwatch import Clock
from dojo.project import Project
from dojo.testrun.results import RunResult, TestResult

_RECORD_SECONDS = 1.0
_PAUSED, _RUNNING = "paused", "running"


@dataclass(frozen=True)
class Standing:
    """Where an exercise stood when the session was left."""

    kata: str
    left: float  # seconds
    hints: int
    last_run: Run | None


class Names(Enum):
    """Whether the tests that fail are named, and the planted bugs counted."""

    SHOWN = auto()
    LATER = auto()  # once half the time is gone
    NEVER = auto()

    def shows(self, test: TestResult) -> bool:
        """Say whether a test that fails may be told of: a symptom also before its time."""
        return self is Names.SHOWN or (self is Names.LATER and test.symptom)


class Round:
    """One kata of a session, under way."""

    def __init__(
        self,
        player: Player,
        exercise: Exercise,
        session: Session,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Plant the bugs, unless the exercise is taken up again, and start the clock."""
        self.player = player
        self.kata = player.kata
        self.interview = session.interview
        self.quiet = session.quiet
        self.budget = exercise.budget
        self.kept = False  # whether an earlier text of the learner's made room
        self._id = exercise.id
        self._sessions = player.history.sessions
        if exercise.attempt is None:
            backup = player.plant(exercise.bugs, "practice")
            self.kept = backup is not None
            self._sessions.begin_exercise(exercise.id, player.attempt().id)
        self._clock = Clock(exercise.spent, now)
        self._recorded = exercise.spent

    @property
    def names(self) -> Names:
        """Say whether failing tests are named: in an interview, once half the time is gone."""
        if self.quiet:
            return Names.NEVER
        if self.interview and self._clock.spent() < self.budget / 2:
            return Names.LATER
        return Names.SHOWN

    def sealed(self) -> frozenset[str]:
        """Return the tests that are only counted: in an interview none, once names are shown."""
        open_all = self.interview and self.names is Names.SHOWN
        return frozenset() if open_all else self.player.sealed()

    def may_name(self, test: TestResult) -> bool:
        """Say whether a test that fails may be told of."""
        return self.names.shows(test) and test.function not in self.sealed()

    @property
    def paused(self) -> bool:
        """Say whether the learner paused the clock."""
        return self._clock.held(_PAUSED)

    def remaining(self) -> float:
        """Return the seconds left, at least 0, and record those spent."""
        spent = self._clock.spent()
        if spent - self._recorded >= _RECORD_SECONDS:
            self._sessions.spend(self._id, spent)
            self._recorded = spent
        return max(0.0, self.budget - spent)

    def toggle_pause(self) -> bool:
        """Stop the clock or let it go on; say whether it stands now."""
        if self.paused:
            self._clock.release(_PAUSED)
        else:
            self._clock.hold(_PAUSED)
        return self.paused

    def run_started(self) -> None:
        """Stop the clock: waiting for the tests is not the learner's time. A save ends a pause."""
        self._clock.hold(_RUNNING)
        self._clock.release(_PAUSED)

    def judge(self, result: RunResult) -> Judgement:
        """Record a run, let the clock go on, and say whether it solves the kata."""
        self._clock.release(_RUNNING)
        return self.player.record(result)

    def hint(self, number: int | None = None) -> str:
        """Return the next hint, on that bug if any, and record it; none in an interview."""
        if self.interview:
            return "an interview gives no hints"
        return self.player.give_hint(number)

    def leave(self) -> None:
        """Record the time, so that the exercise can be taken up again."""
        self._sessions.spend(self._id, self._clock.spent())

    def end(self, ending: Ending) -> Debrief:
        """End the exercise. Unless it was skipped, the answer is shown now: that is recorded."""
        spent = min(self._clock.spent(), self.budget)
        history = self.player.history
        attempt = self.player.attempt()
        if ending not in (Ending.SOLVED, Ending.SKIPPED):
            history.reveal(attempt.id)
        grade = scheduler.grade(ending, spent, self.budget, len(history.hints(attempt.id)))
        ended = self._sessions.end_exercise(self._id, ending, spent, grade)
        result = debrief(self.player, ended)
        assert result is not None  # it began
        return result


@dataclass(frozen=True)
class Finished:
    """A round that came to its end."""

    debrief: Debrief
    more: bool  # katas are to come
    hidden: bool  # its debrief waits for the report at the session's end


class Practice:
    """A practice session under way."""

    def __init__(self, project: Project, history: History, session: Session) -> None:
        """Take up a recorded session."""
        self._project = project
        self._sessions = history.sessions
        self._history = history
        self.session = session

    def exercises(self) -> list[Exercise]:
        """Return the session's exercises, those that ended too."""
        return self._sessions.exercises(self.session.id)

    def is_of(self, planned: Sequence[Planned]) -> bool:
        """Say whether its exercises are these, in this order."""
        wanted = [(item.kata.name, item.bugs) for item in planned]
        return [(one.kata, one.bugs) for one in self.exercises()] == wanted

    def next_round(self) -> Round | None:
        """Return the first exercise that has not ended; None, ending the session, once all have.

        Where the kata was planted anew since the exercise began, its bugs are no longer in the
        learner's file, and it is passed over; so is a kata that is no longer there.
        """
        for exercise, kata in self._exercises():
            if exercise.ending is not None:
                continue
            if kata is not None:
                player = Player(self._project, kata, self._history)
                if exercise.attempt in (None, player.workspace.attempt()):
                    return Round(player, exercise, self.session)
            self._sessions.end_exercise(exercise.id, Ending.SKIPPED, exercise.spent, None)
        self.end()
        return None

    def finish(self, round_: Round, ending: Ending | None) -> Finished | None:
        """End a round, and say how it went; without an ending, the session is left, and None."""
        if ending is None:
            round_.leave()
            return None
        debrief = round_.end(ending)
        more = self.standing() is not None
        return Finished(debrief, more, hidden=self.session.interview)

    def debriefs(self) -> list[Debrief]:
        """Return how each kata that was begun and has ended went."""
        found = []
        for exercise, kata in self._exercises():
            if kata is not None:
                found.append(debrief(Player(self._project, kata, self._history), exercise))
        return [item for item in found if item is not None]

    def _exercises(self) -> Iterator[tuple[Exercise, Kata | None]]:
        """Yield each exercise with its kata, or None for a kata that has gone."""
        for exercise in self.exercises():
            folder = self._project.katas / exercise.kata
            yield exercise, kata_toml.load(folder) if folder.is_dir() else None

    def standing(self) -> Standing | None:
        """Say where the session stands; None if there is nothing left of it."""
        for exercise in self.exercises():
            if exercise.ending is None:
                attempt = exercise.attempt
                return Standing(
                    exercise.kata,
                    exercise.budget - exercise.spent,
                    len(self._history.hints(attempt)) if attempt else 0,
                    self._history.last_run(attempt) if attempt else None,
                )
        return None

    def end(self) -> None:
        """End the session; what was not reached counts as skipped."""
        self._sessions.end(self.session.id)


def begin(
    project: Project,
    history: History,
    planned: Sequence[Planned],
    *,
    interview: bool = False,
    quiet: bool = False,
    interview_on: date | None = None,
) -> Practice:
    """Record a session of these katas."""
    exercises = [(item.kata.name, item.bugs, item.budget) for item in planned]
    session = history.sessions.begin(
        exercises, interview=interview, quiet=quiet, interview_on=interview_on
    )
    return Practice(project, history, session)


def unfinished(project: Project, history: History) -> Practice | None:
    """Return the session that was left before its end, if there is one."""
    session = history.sessions.unfinished()
    return Practice(project, history, session) if session else None


def refuse_in_interview(player: Player) -> None:
    """Raise `DojoError` if the kata is part of an interview that goes on."""
    session = player.history.sessions.unfinished()
    if session is None or not session.interview:
        return
    for exercise in player.history.sessions.exercises(session.id):
        if exercise.attempt == player.attempt().id and exercise.ending is None:
            raise DojoError(
                f"{player.kata.name} is under way in an interview, which gives no hints and judges "
                "each save by itself"
            )


def last_time(history: History, kata: str) -> tuple[float, int] | None:
    """Return the seconds and the hints of a kata's last exercise, if one was ended."""
    met = [
        (item.ended_at, item.spent, item.attempt)
        for item in history.sessions.exercises()
        if item.kata == kata and item.grade and item.ended_at and item.attempt
    ]
    if not met:
        return None
    _, spent, attempt = max(met)
    return spent, len(history.hints(attempt))


@contextmanager
def alone(project: Project) -> Iterator[None]:
    """Refuse a second session in the same checkout; the lock ends with the process."""
    project.state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(project.state / "practice.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DojoError(
            "a practice session is running in this checkout already; end it first, "
            "or practise in a clone of your own"
        ) from None
    try:
        yield
    finally:
        lock.release()
