"""What the learner said of the changes in the requests that they reviewed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dojo.history.database import Database, now
from dojo.kata.bug import Kind


class Effect(StrEnum):
    """What a change of a request does."""

    BREAKS = "breaks"  # brings a bug in
    MENDS = "mends"  # takes one out
    HARMLESS = "harmless"


@dataclass(frozen=True)
class Reviewed:
    """One change of a request, and whether the learner marked it as wrong."""

    kata: str
    effect: Effect
    bug: str  # that comes in or goes; empty for a harmless one
    kind: Kind | None  # of that bug
    marked: bool

    @property
    def right(self) -> bool:
        """Say whether the learner was right."""
        return self.marked is (self.effect is Effect.BREAKS)


@dataclass(frozen=True)
class ReviewedRequest:
    """A request that was judged: when, in which time, and each of its changes."""

    at: datetime
    seconds: float
    changes: tuple[Reviewed, ...]


class Reviews:
    """The reviews in a history's database, a row a change."""

    def __init__(self, database: Database) -> None:
        """Take an open database."""
        self._database = database

    def add(self, changes: Sequence[Reviewed], seconds: float) -> None:
        """Record a request that was judged just now."""
        at = now()
        with self._database.transaction():
            for place, one in enumerate(changes):
                self._database.execute(
                    "INSERT INTO review (at, place, kata, effect, bug, kind, marked, seconds) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (at, place, one.kata, one.effect, one.bug, one.kind, one.marked, seconds),
                )

    def all(self) -> list[ReviewedRequest]:
        """Return every request that was judged, oldest first."""
        rows = self._database.execute(
            "SELECT at, kata, effect, bug, kind, marked, seconds FROM review ORDER BY at, place, id"
        )
        changes: dict[str, list[Reviewed]] = {}
        times: dict[str, float] = {}
        for at, kata, effect, bug, kind, marked, seconds in rows:
            one = Reviewed(kata, Effect(effect), bug, Kind(kind) if kind else None, bool(marked))
            changes.setdefault(at, []).append(one)
            times[at] = seconds
        return [
            ReviewedRequest(datetime.fromisoformat(at), times[at], tuple(found))
            for at, found in changes.items()
        ]
