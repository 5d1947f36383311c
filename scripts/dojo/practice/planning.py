"""Chooses what a practice session consists of: katas, their bugs, and the time for each."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.util import find_spec

from dojo.errors import DojoError, typed
from dojo.history.history import History
from dojo.history.proofs import Goal
from dojo.history.sessions import Ending
from dojo.kata.bug import Bug
from dojo.kata.drawing import draw_bugs
from dojo.kata.kata import Kata, Level, Topic
from dojo.practice import scheduler
from dojo.testrun.device import has_gpu

DEFAULT_MINUTES = 45.0

INTERVIEW_PLANTS = (4, 5)  # bugs in a system, as interviewers do


@dataclass(frozen=True)
class Wishes:
    """What the learner asked for. Names, if any, take the place of a choice of katas."""

    named: tuple[Kata, ...] = ()
    minutes: float | None = None
    katas: int | None = None
    topic: Topic | None = None
    level: Level | None = None
    seed: int | None = None  # the same session for everyone: history is not looked at
    gpu: bool = False
    fresh: bool = False
    interview: bool = False
    quiet: bool = False
    interview_on: date | None = None


@dataclass(frozen=True)
class Planned:
    """One kata of a session to come."""

    kata: Kata
    bugs: tuple[str, ...]
    budget: float  # seconds


@dataclass(frozen=True)
class PlannedProof:
    """One kata of a session of proofs to come."""

    kata: Kata
    goal: Goal
    budget: float  # seconds


@dataclass(frozen=True)
class _Met:
    """What the learner met before: when each kata is due, and which ones are done."""

    due: Mapping[str, datetime]
    done: set[str]


def plan(katas: Sequence[Kata], history: History, wishes: Wishes) -> list[Planned]:
    """Return the session's katas in order, or raise `DojoError` if none fits the wishes."""
    if wishes.gpu and not has_gpu():
        raise DojoError("--gpu needs a CUDA device, and none is here")
    rng = random.Random(wishes.seed)
    sessions = history.sessions
    interview_on = wishes.interview_on or sessions.interview_on()
    met = _Met(scheduler.due(sessions.exercises(), interview_on), history.solved_katas())
    chosen = (
        list(wishes.named)
        or _interview_system(katas, history, wishes, rng)
        or _choose(_candidates(katas, wishes), met, wishes, rng)
    )
    return [
        Planned(kata, choose_bugs(kata, history, wishes, rng), 60 * minutes)
        for kata, minutes in _minutes(chosen, wishes)
    ]


def plan_proofs(katas: Sequence[Kata], history: History, wishes: Wishes) -> list[PlannedProof]:
    """Return the katas to prove, in order: first one bug of each, then half of all, then all."""
    rng = random.Random(wishes.seed)
    proofs = history.proofs.all()
    proved = Counter(proof.kata for proof in proofs if proof.ending is Ending.SOLVED)
    met = _Met(scheduler.due(proofs, history.sessions.interview_on()), set(proved))
    chosen = list(wishes.named) or _choose(_candidates(katas, wishes), met, wishes, rng)
    goals = list(Goal)
    return [
        PlannedProof(kata, goals[min(proved[kata.name], len(goals) - 1)], 60 * minutes)
        for kata, minutes in _minutes(chosen, wishes)
    ]


def _minutes(chosen: Sequence[Kata], wishes: Wishes) -> list[tuple[Kata, float]]:
    """Share out the minutes that were asked for; without, each kata has its own."""
    minutes = wishes.minutes
    if minutes is None and not wishes.named and wishes.katas is None:
        minutes = DEFAULT_MINUTES
    scale = minutes / sum(kata.minutes for kata in chosen) if minutes else 1.0
    return [(kata, scale * kata.minutes) for kata in chosen]


def choose_bugs(
    kata: Kata, history: History, wishes: Wishes, rng: random.Random
) -> tuple[str, ...]:
    """Return the default bugs at the first attempt, and later a set that was not planted yet.

    Of several it is the one whose bugs were met least. Once all sets were planted, it is another
    than the last time, if there is another.
    """
    attempts = [] if wishes.seed is not None else history.attempts(kata.name)
    if not (attempts or wishes.fresh or wishes.interview or wishes.gpu or wishes.seed is not None):
        return kata.default
    pool: Sequence[Bug] = kata.some_fresh() if wishes.fresh else kata.bugs
    pool = [bug for bug in pool if wishes.gpu or not bug.gpu]
    count = len(kata.default)
    if wishes.interview:
        most = max(count, Level.HARD.planted[0])
        count = rng.choice(INTERVIEW_PLANTS) if kata.is_system else most
    met = [frozenset(attempt.planted) for attempt in attempts]
    drawn = [_draw(kata, pool, count, rng) for _ in range(30)]
    new = [bugs for bugs in drawn if frozenset(bugs) not in met]
    other = [bugs for bugs in drawn if not met or frozenset(bugs) != met[-1]]
    times = Counter(bug for planted in met for bug in planted)
    return min(new or other or drawn, key=lambda bugs: sum(times[bug] for bug in bugs))


def _draw(kata: Kata, pool: Sequence[Bug], count: int, rng: random.Random) -> tuple[str, ...]:
    """Draw that many bugs, or as many as go together."""
    while True:
        try:
            return draw_bugs(kata, count, rng.randrange(2**31), pool)
        except DojoError:
            if count == 1:
                raise
            count -= 1


def _candidates(katas: Sequence[Kata], wishes: Wishes) -> list[Kata]:
    found = [
        kata
        for kata in katas
        if not kata.draft
        and wishes.topic in (None, kata.topic)
        and wishes.level in (None, kata.level)
        and not (wishes.interview and kata.level is Level.EASY and wishes.level is None)
        and (kata.needs_triton if wishes.gpu else True)
        and (not kata.needs_triton or find_spec("triton"))
        and (kata.fresh if wishes.fresh else True)
    ]
    if not found:
        raise DojoError(f"no kata fits these wishes; {typed('list')} shows topics and levels")
    return found


def _is_bare_interview(wishes: Wishes) -> bool:
    """Say whether an interview is asked for and nothing of what its katas should be."""
    chosen = (wishes.topic, wishes.level, wishes.katas, wishes.gpu or None, wishes.fresh or None)
    return wishes.interview and chosen == (None,) * len(chosen)


def _choose(katas: list[Kata], met: _Met, wishes: Wishes, rng: random.Random) -> list[Kata]:
    """Return as many katas as were asked for, or as fit the time: at least one."""
    ordered = _by_need(katas, met, wishes, rng)
    if wishes.katas is not None:
        return ordered[: wishes.katas]
    left = wishes.minutes or DEFAULT_MINUTES
    chosen: list[Kata] = []
    for kata in ordered:
        if not chosen or kata.minutes <= left:
            chosen.append(kata)
            left -= kata.minutes
    return chosen


def _interview_system(
    katas: Sequence[Kata], history: History, wishes: Wishes, rng: random.Random
) -> list[Kata]:
    """Return the system of a bare interview: the first, by number, that was never tried.

    Once all were, it is the one longest not tried. None if there is none, or more was wished.
    """
    systems = [kata for kata in katas if kata.is_system and not kata.draft]
    if not systems or not _is_bare_interview(wishes):
        return []
    if wishes.seed is not None:
        return [rng.choice(systems)]
    tried = {kata.name: history.attempts(kata.name) for kata in systems}
    new = [kata for kata in systems if not tried[kata.name]]
    return new[:1] or [min(systems, key=lambda kata: tried[kata.name][-1].started_at)]


def _by_need(katas: list[Kata], met: _Met, wishes: Wishes, rng: random.Random) -> list[Kata]:
    """Order katas: those due, longest first; new ones, easiest first; the rest, by their date."""
    shuffled = rng.sample(katas, len(katas))
    if wishes.seed is not None:
        return shuffled
    now = datetime.now(UTC)

    def need(kata: Kata) -> tuple[int, float]:
        due = met.due.get(kata.name)
        if due is None:
            return (2, 0.0) if kata.name in met.done else (1, kata.level.rank)
        return (0 if due <= now else 2), due.timestamp()

    return sorted(shuffled, key=need)
