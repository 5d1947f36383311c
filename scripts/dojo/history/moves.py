"""What a learner does in an attempt beside editing and testing."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dojo.history.database import Database, now


class MoveKind(StrEnum):
    """What a learner does to find out more."""

    NOTE = "note"  # writes down what they suspect
    PROBE = "probe"
    LOG = "log"  # lets the system run and reads what it logs
    DEBUG = "debug"


@dataclass(frozen=True)
class Move:
    """One such thing."""

    at: datetime
    kind: MoveKind
    text: str  # of a note


class Moves:
    """The moves in a history's database."""

    def __init__(self, database: Database) -> None:
        """Take an open database."""
        self._database = database

    def add(self, attempt_id: int, kind: MoveKind, text: str = "") -> None:
        """Record a move."""
        self._database.execute(
            "INSERT INTO move (attempt, at, kind, text) VALUES (?, ?, ?, ?)",
            (attempt_id, now(), kind, text),
        )

    def of(self, attempt_id: int) -> list[Move]:
        """Return the moves of an attempt, oldest first."""
        rows = self._database.execute(
            "SELECT at, kind, text FROM move WHERE attempt = ? ORDER BY at, id", (attempt_id,)
        )
        return [Move(datetime.fromisoformat(at), MoveKind(kind), text) for at, kind, text in rows]
