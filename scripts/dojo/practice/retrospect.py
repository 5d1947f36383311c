"""An attempt looked back on: what was done when, and what an onlooker would have seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dojo.history.history import Attempt, History, Run
from dojo.history.moves import Move

Deed = Move | Run


@dataclass(frozen=True)
class Entry:
    """A move or a run of the tests. The seconds count from the planting, pauses too."""

    seconds: float
    deed: Deed
    fixed: tuple[str, ...] = ()  # bugs that a run found gone for the first time
    edited: bool = False  # whether a run tested another text than the one before


@dataclass(frozen=True)
class Retrospect:
    """All that was done in an attempt, in order."""

    entries: tuple[Entry, ...]

    @property
    def first_edit(self) -> float | None:
        """Return after how many seconds a changed text was first tested."""
        return next((entry.seconds for entry in self.entries if entry.edited), None)

    @property
    def first_fix(self) -> float | None:
        """Return after how many seconds the first bug was gone."""
        return next((entry.seconds for entry in self.entries if entry.fixed), None)

    @property
    def taken_back(self) -> int:
        """Return how often an edit led back to a text that had been tested before."""
        seen: set[str] = set()
        count = 0
        for entry in self.entries:
            if isinstance(entry.deed, Run):
                count += entry.edited and entry.deed.revision in seen
                seen.add(entry.deed.revision)
        return count

    def moves(self) -> list[tuple[float, Move]]:
        """Return what was done beside editing and testing, after how many seconds."""
        return [(item.seconds, item.deed) for item in self.entries if isinstance(item.deed, Move)]


def look_back(history: History, attempt: Attempt) -> Retrospect:
    """Return what was done in an attempt."""
    deeds: list[tuple[datetime, Deed]] = [
        *((move.at, move) for move in history.moves.of(attempt.id)),
        *history.timed_runs(attempt.id),
    ]
    return Retrospect(tuple(_entries(sorted(deeds, key=lambda deed: deed[0]), attempt.started_at)))


def _entries(deeds: Sequence[tuple[datetime, Deed]], started_at: datetime) -> list[Entry]:
    entries = []
    gone: set[str] = set()
    revision: str | None = None
    for at, deed in deeds:
        seconds = (at - started_at).total_seconds()
        if isinstance(deed, Move):
            entries.append(Entry(seconds, deed))
            continue
        fixed = tuple(bug for bug in deed.gone or () if bug not in gone)
        edited = revision is not None and deed.revision != revision
        entries.append(Entry(seconds, deed, fixed, edited))
        gone.update(fixed)
        revision = deed.revision
    return entries
