"""Which planted bugs the learner did not find in practice sessions, and how often."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dojo.errors import DojoError
from dojo.history.history import History
from dojo.history.sessions import Ending, Exercise
from dojo.kata.kata import Kata


@dataclass(frozen=True)
class Missed:
    """A bug that was not found every time, or not without a hint."""

    kata: str
    bug: str
    title: str
    planted: int
    missed: int
    hinted: int  # found, but after a hint
    seen_in: tuple[str, ...]


def missed_bugs(
    history: History, exercises: Iterable[Exercise], katas: Mapping[str, Kata]
) -> tuple[Missed, ...]:
    """Return the bugs missed in these ended exercises, most often missed first."""
    planted: Counter[tuple[str, str]] = Counter()
    missed: Counter[tuple[str, str]] = Counter()
    hinted: Counter[tuple[str, str]] = Counter()
    for exercise in exercises:
        bugs = {(exercise.kata, bug) for bug in planted_bugs(history, exercise)}
        found = {(exercise.kata, bug) for bug in found_bugs(history, exercise)}
        helped = {(exercise.kata, bug) for bug in _helped(history, exercise)}
        planted.update(bugs)
        missed.update(bugs - found)
        hinted.update(bugs & found & helped)
    worst = sorted(missed | hinted, key=lambda bug: (-missed[bug], -hinted[bug], bug))
    return tuple(_described(katas, bug, planted[bug], missed[bug], hinted[bug]) for bug in worst)


def planted_bugs(history: History, exercise: Exercise) -> set[str]:
    """Return the bugs that were planted for an exercise."""
    attempt = history.attempt(exercise.attempt) if exercise.attempt is not None else None
    return set(attempt.planted) if attempt else set()


def found_bugs(history: History, exercise: Exercise) -> set[str]:
    """Return the bugs that were gone when the exercise ended; a later run does not count."""
    if exercise.ending is Ending.SOLVED:
        return planted_bugs(history, exercise)
    if exercise.attempt is None or exercise.ended_at is None:
        return set()
    return set(history.last_count(exercise.attempt, exercise.ended_at.isoformat()))


def _helped(history: History, exercise: Exercise) -> set[str]:
    if exercise.attempt is None:
        return set()
    return {bug for bug, _ in history.hints(exercise.attempt)}


def _described(
    katas: Mapping[str, Kata], names: tuple[str, str], planted: int, missed: int, hinted: int
) -> Missed:
    kata, bug_id = names
    try:
        bug = katas[kata].bug(bug_id)
    except (KeyError, DojoError):  # the catalogue no longer has it: its id must do
        return Missed(kata, bug_id, bug_id, planted, missed, hinted, ())
    return Missed(kata, bug_id, bug.title, planted, missed, hinted, bug.seen_in)
