"""What the learner did in practice sessions: which katas, in which time, to what end."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

from dojo.history.database import Database, moment, now


class Ending(StrEnum):
    """How an exercise ended."""

    SOLVED = "solved"
    MISSED = "missed"  # time was up
    REVEALED = "revealed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Session:
    """A practice session: katas against the clock."""

    id: int
    started_at: datetime
    interview: bool
    quiet: bool  # it says solved or not, and no more
    interview_on: date | None  # the day that the learner prepares for
    ended_at: datetime | None


@dataclass(frozen=True)
class Exercise:
    """One kata of a session: what it was to be, and how far it came. Times are seconds."""

    id: int
    session: int
    kata: str
    bugs: tuple[str, ...]  # to be planted; what was, its attempt knows
    budget: float
    spent: float
    attempt: int | None  # none until it begins
    ending: Ending | None  # none until it ends
    grade: int | None  # 1 to 4, as FSRS counts; none for one that was skipped
    ended_at: datetime | None


class Sessions:
    """The practice sessions in a history's database."""

    def __init__(self, database: Database) -> None:
        """Take an open database."""
        self._database = database

    def begin(
        self,
        exercises: Sequence[tuple[str, Sequence[str], float]],
        *,
        interview: bool = False,
        quiet: bool = False,
        interview_on: date | None = None,
    ) -> Session:
        """Record a session and its exercises, each a kata, bug ids and a budget in seconds."""
        with self._database.transaction():
            (session_id,) = self._database.execute(
                "INSERT INTO session (started_at, interview, quiet, interview_on) "
                "VALUES (?, ?, ?, ?) RETURNING id",
                (now(), interview, quiet, interview_on and interview_on.isoformat()),
            ).fetchone()
            for kata, bugs, budget in exercises:
                self._database.execute(
                    "INSERT INTO exercise (session, kata, bugs, budget) VALUES (?, ?, ?, ?)",
                    (session_id, kata, json.dumps(list(bugs)), budget),
                )
        return self._select("WHERE id = ?", session_id)[0]

    def all(self) -> list[Session]:
        """Return every session, oldest first."""
        return self._select("ORDER BY started_at, id")

    def unfinished(self) -> Session | None:
        """Return the session that has not ended, if there is one."""
        found = self._select("WHERE ended_at IS NULL ORDER BY started_at DESC LIMIT 1")
        return found[0] if found else None

    def interview_on(self) -> date | None:
        """Return the day that the learner last said to prepare for, unless it has passed."""
        row = self._database.execute(
            "SELECT interview_on FROM session WHERE interview_on IS NOT NULL "
            "ORDER BY started_at DESC LIMIT 1"
        ).fetchone()
        day = date.fromisoformat(row[0]) if row else None
        return day if day and day >= date.today() else None

    def end(self, session_id: int) -> None:
        """Record the end of a session; exercises that were not reached count as skipped."""
        with self._database.transaction():
            self._database.execute(
                "UPDATE exercise SET outcome = ?, ended_at = ? "
                "WHERE session = ? AND outcome IS NULL",
                (Ending.SKIPPED, now(), session_id),
            )
            self._database.execute(
                "UPDATE session SET ended_at = ? WHERE id = ?", (now(), session_id)
            )

    def exercises(self, session_id: int | None = None) -> list[Exercise]:
        """Return the exercises of a session in their order, or of all sessions."""
        rows = self._database.execute(
            "SELECT id, session, kata, bugs, budget, spent, attempt, outcome, grade, ended_at "
            "FROM exercise WHERE session = coalesce(?, session) ORDER BY id",
            (session_id,),
        )
        return [
            Exercise(
                id=row[0],
                session=row[1],
                kata=row[2],
                bugs=tuple(json.loads(row[3])),
                budget=row[4],
                spent=row[5],
                attempt=row[6],
                ending=Ending(row[7]) if row[7] else None,
                grade=row[8],
                ended_at=moment(row[9]),
            )
            for row in rows
        ]

    def begin_exercise(self, exercise_id: int, attempt_id: int) -> None:
        """Record that an exercise's bugs are planted, as this attempt."""
        self._database.execute(
            "UPDATE exercise SET attempt = ? WHERE id = ?", (attempt_id, exercise_id)
        )

    def spend(self, exercise_id: int, seconds: float) -> None:
        """Record the time spent on an exercise until now."""
        self._database.execute("UPDATE exercise SET spent = ? WHERE id = ?", (seconds, exercise_id))

    def end_exercise(
        self, exercise_id: int, ending: Ending, spent: float, grade: int | None
    ) -> Exercise:
        """Record how an exercise ended, and return it."""
        self._database.execute(
            "UPDATE exercise SET outcome = ?, spent = ?, grade = ?, ended_at = ? WHERE id = ?",
            (ending, spent, grade, now(), exercise_id),
        )
        return next(item for item in self.exercises() if item.id == exercise_id)

    def _select(self, where: str, *parameters: int) -> list[Session]:
        rows = self._database.execute(
            f"SELECT id, started_at, interview, quiet, interview_on, ended_at FROM session {where}",
            parameters,
        )
        return [
            Session(
                row[0],
                datetime.fromisoformat(row[1]),
                bool(row[2]),
                bool(row[3]),
                date.fromisoformat(row[4]) if row[4] else None,
                moment(row[5]),
            )
            for row in rows
        ]
