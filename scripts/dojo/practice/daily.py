"""The bug of the day: the same for everyone, another each day, to hunt, to prove or to read."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from dojo.errors import DojoError
from dojo.kata.bug import Bug
from dojo.kata.kata import Kata

MINUTES = 10.0
REQUESTS = 3  # of a day of reading
_FIRST_DAY = date(2026, 1, 1)
_MOST_LINES = 200  # of a reference that can be read and mended in ten minutes


class Discipline(StrEnum):
    """What is asked of a day."""

    HUNT = "hunt"
    PROOF = "proof"
    REVIEW = "review"


@dataclass(frozen=True)
class Daily:
    """What is asked on one day; of a day of reading the kata and the bug are no matter."""

    day: date
    discipline: Discipline
    kata: Kata
    bug: Bug

    @property
    def seed(self) -> int:
        """Return the seed of what is drawn on that day."""
        return self.day.toordinal()


def daily(katas: Sequence[Kata], day: date) -> Daily:
    """Return what is asked on a day; no bug comes twice until every other has come.

    Only katas that need no triton and are short enough: it is the same on every machine.
    """
    number = (day - _FIRST_DAY).days
    discipline = list(Discipline)[number % len(Discipline)]
    bugs = [
        (kata, bug)
        for kata in katas
        if not (kata.draft or kata.needs_triton or kata.is_system)
        and kata.correct_source.count("\n") <= _MOST_LINES
        # The story of a fresh bug is its operator's: too little to write a test from.
        for bug in (kata.bugs if discipline is Discipline.PROOF else (*kata.bugs, *kata.fresh))
        if not bug.gpu
    ]
    if not bugs:
        raise DojoError("no kata here is fit for a day")
    random.Random(f"daily {discipline}").shuffle(bugs)
    kata, bug = bugs[number // len(Discipline) % len(bugs)]
    return Daily(day, discipline, kata, bug)
