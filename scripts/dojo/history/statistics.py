"""What a history adds up to: katas solved, streaks, times, and the bugs that were missed."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta, tzinfo

from dojo.history.database import Database, moment
from dojo.history.history import History
from dojo.history.kinds import KindMet, kinds_met
from dojo.history.misses import Missed, missed_bugs
from dojo.history.reviews import Effect, Reviewed, ReviewedRequest
from dojo.history.scoring import Score, score
from dojo.history.sessions import Ending, Exercise
from dojo.kata.kata import Kata

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Solved:
    """How many katas of a topic or level are solved."""

    name: str
    solved: int
    katas: int


@dataclass(frozen=True)
class Timing:
    """The time that one exercise took."""

    seconds: float
    solved: bool


@dataclass(frozen=True)
class Times:
    """The times of a kata in practice sessions, oldest first."""

    kata: str
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class Totals:
    """Everything added up."""

    sessions: int
    seconds: float  # in sessions
    runs: int
    hints: int
    proofs: int  # that came to their end


@dataclass(frozen=True)
class Detected:
    """What came of the changes of a topic, or of a kind of bug, in reviews.

    A harmless change is of no kind: of a kind, the false alarms and the approvals are those of all.
    """

    name: str
    hits: int
    misses: int
    false_alarms: int
    approvals: int
    sensitivity: float | None  # d'
    bias: float | None

    @classmethod
    def of(cls, name: str, score: Score) -> "Detected":
        """Return a score under a name."""
        return cls(
            name,
            score.hits,
            score.misses,
            score.false_alarms,
            score.approvals,
            score.sensitivity,
            score.bias,
        )

    @property
    def bugs(self) -> int:
        """Return how many bugs came in."""
        return self.hits + self.misses

    @property
    def right(self) -> int:
        """Return how many changes were right."""
        return self.false_alarms + self.approvals


@dataclass(frozen=True)
class ReviewStats:
    """What reviews add up to."""

    requests: int
    seconds: float
    whole: Detected
    topics: tuple[Detected, ...]
    kinds: tuple[Detected, ...]  # of the bugs that came in, those most often missed first


@dataclass(frozen=True)
class Stats:
    """What a history adds up to on one day."""

    today: date
    topics: tuple[Solved, ...]
    levels: tuple[Solved, ...]
    removed: tuple[str, ...]  # solved katas that the catalogue no longer has
    days: tuple[date, ...]  # with a solve, a run in a session, a proof or a review
    current_streak: int
    longest_streak: int
    times: tuple[Times, ...]
    missed: tuple[Missed, ...]  # most often missed first
    totals: Totals
    reviews: ReviewStats
    kinds: tuple[KindMet, ...]  # of bugs, most often missed first

    @property
    def empty(self) -> bool:
        """Say whether nothing was practised yet."""
        totals = self.totals
        met = totals.sessions or totals.runs or totals.hints or totals.proofs
        return not (met or self.reviews.requests)

    def as_json(self) -> str:
        """Return the numbers as a JSON object whose keys are the names of the fields."""
        return json.dumps(asdict(self), indent=2, default=date.isoformat)


def gather(
    history: History, katas: Sequence[Kata], today: date, zone: tzinfo | None = None
) -> Stats:
    """Add up a history; days are those of the zone, by default the local one."""
    solved = history.solved_katas()
    exercises = _ended(history.sessions.exercises())
    by_name = {kata.name: kata for kata in katas}
    days = _days(history.database, zone)
    current, longest = _streaks(days, today)
    levels = sorted(katas, key=lambda kata: kata.level.rank)
    return Stats(
        today=today,
        topics=_solved([(kata.topic, kata.name in solved) for kata in katas]),
        levels=_solved([(kata.level, kata.name in solved) for kata in levels]),
        removed=tuple(sorted(solved - {kata.name for kata in katas})),
        days=tuple(sorted(days)),
        current_streak=current,
        longest_streak=longest,
        times=_times(exercises),
        missed=missed_bugs(history, exercises, by_name),
        totals=_totals(history.database),
        reviews=_reviews(history.reviews.all(), by_name),
        kinds=kinds_met(history, exercises, by_name),
    )


def _ended(exercises: Iterable[Exercise]) -> list[Exercise]:
    """Return those that ended, in that order, but for the skipped ones: they prove nothing.

    The bugs of a skipped one may also be in the learner's file still, not to be told.
    """
    ended = [
        (exercise.ended_at, exercise.id, exercise)
        for exercise in exercises
        if exercise.ended_at and exercise.ending is not Ending.SKIPPED
    ]
    return [exercise for _, _, exercise in sorted(ended, key=lambda entry: entry[:2])]


def _days(database: Database, zone: tzinfo | None) -> set[date]:
    rows = database.execute(
        "SELECT solved_at FROM attempt WHERE solved_at IS NOT NULL "
        "AND (revealed_at IS NULL OR revealed_at > solved_at) "
        "UNION SELECT at FROM run WHERE attempt IN (SELECT attempt FROM exercise) "
        "UNION SELECT ended_at FROM proof WHERE outcome = 'solved' "
        "UNION SELECT at FROM review"
    )
    moments = (moment(at) for (at,) in rows)
    return {at.astimezone(zone).date() for at in moments if at}


def _streaks(days: set[date], today: date) -> tuple[int, int]:
    """Return the current streak and the longest; a day that is not over breaks none."""
    lengths: dict[date, int] = {}
    for day in sorted(days):
        lengths[day] = lengths.get(day - _DAY, 0) + 1
    current = lengths.get(today, lengths.get(today - _DAY, 0))
    return current, max(lengths.values(), default=0)


def _solved(katas: Sequence[tuple[str, bool]]) -> tuple[Solved, ...]:
    """Count katas, each given as the name of its group and whether it is solved."""
    solved = Counter(group for group, is_solved in katas if is_solved)
    members = Counter(group for group, _ in katas)
    return tuple(Solved(group, solved[group], number) for group, number in members.items())


def _times(exercises: Iterable[Exercise]) -> tuple[Times, ...]:
    times: dict[str, list[Timing]] = {}
    for exercise in exercises:
        timing = Timing(exercise.spent, exercise.ending is Ending.SOLVED)
        times.setdefault(exercise.kata, []).append(timing)
    return tuple(Times(kata, tuple(timings)) for kata, timings in sorted(times.items()))


def _totals(database: Database) -> Totals:
    row = database.execute(
        "SELECT (SELECT COUNT(*) FROM session), (SELECT coalesce(SUM(spent), 0) FROM exercise), "
        "(SELECT COUNT(*) FROM run), (SELECT COUNT(*) FROM hint), "
        "(SELECT COUNT(*) FROM proof WHERE outcome IS NOT NULL AND outcome != 'skipped')"
    ).fetchone()
    return Totals(*row)


def _reviews(requests: Sequence[ReviewedRequest], katas: Mapping[str, Kata]) -> ReviewStats:
    changes = [one for request in requests for one in request.changes]
    right = [one for one in changes if one.effect is not Effect.BREAKS]
    topics: dict[str, list[Reviewed]] = {}
    kinds: dict[str, list[Reviewed]] = {}
    for one in changes:
        if one.kata in katas:  # of one that has gone nobody knows the topic
            topics.setdefault(katas[one.kata].topic, []).append(one)
        if one.kind is not None and one.effect is Effect.BREAKS:
            kinds.setdefault(one.kind, []).append(one)
    of_kinds = [Detected.of(kind, score([*met, *right])) for kind, met in kinds.items()]
    of_topics = [Detected.of(topic, score(met)) for topic, met in topics.items()]
    return ReviewStats(
        len(requests),
        sum(request.seconds for request in requests),
        Detected.of("all", score(changes)),
        tuple(sorted(of_topics, key=lambda one: one.name)),
        tuple(sorted(of_kinds, key=lambda one: (-one.misses, one.hits, one.name))),
    )
