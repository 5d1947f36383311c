"""What the learner proved: which versions of a kata their own tests catch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dojo.history.database import Database, moment, now
from dojo.history.sessions import Ending


class Goal(StrEnum):
    """How much a proof has to catch."""

    ONE = "one"  # one given bug, whose story is told
    HALF = "half"  # half of the wrong versions
    ALL = "all"


@dataclass(frozen=True)
class Proof:
    """One proof: what it was to catch, and how far it came. Times are seconds."""

    id: int
    kata: str
    goal: Goal
    versions: tuple[str, ...]  # ids of bugs, each planted alone
    budget: float | None  # none without a clock
    started_at: datetime
    spent: float
    hints: int
    claims: int  # that a version is correct, which was wrong
    caught: tuple[str, ...]  # ids of those caught at the last verdict
    alarms: int  # correct versions that were refused, at the last verdict
    ending: Ending | None  # none until it ends
    grade: int | None  # 1 to 4, as FSRS counts
    ended_at: datetime | None


_COLUMNS = (
    "id, kata, goal, versions, budget, started_at, spent, hints, claims, caught, alarms, "
    "outcome, grade, ended_at"
)


class Proofs:
    """The proofs in a history's database."""

    def __init__(self, database: Database) -> None:
        """Take an open database."""
        self._database = database

    def begin(
        self, kata: str, goal: Goal, versions: Sequence[str], budget: float | None = None
    ) -> Proof:
        """Record that a proof begins; one of the same kata that was left ends as skipped."""
        with self._database.transaction():
            self._database.execute(
                "UPDATE proof SET outcome = ?, ended_at = ? WHERE kata = ? AND outcome IS NULL",
                (Ending.SKIPPED, now(), kata),
            )
            (proof_id,) = self._database.execute(
                "INSERT INTO proof (kata, goal, versions, budget, started_at) "
                "VALUES (?, ?, ?, ?, ?) RETURNING id",
                (kata, goal, json.dumps(list(versions)), budget, now()),
            ).fetchone()
        return self.get(proof_id)

    def get(self, proof_id: int) -> Proof:
        """Return one proof."""
        return self._select("WHERE id = ?", proof_id)[0]

    def unfinished(self, kata: str) -> Proof | None:
        """Return the proof of this kata that has not ended, if there is one."""
        found = self._select("WHERE kata = ? AND outcome IS NULL ORDER BY id DESC LIMIT 1", kata)
        return found[0] if found else None

    def all(self) -> list[Proof]:
        """Return every proof, oldest first."""
        return self._select("ORDER BY started_at, id")

    def judged(self, proof_id: int, caught: Sequence[str], alarms: int) -> None:
        """Record what the newest text catches, and how many correct versions it refuses."""
        self._database.execute(
            "UPDATE proof SET caught = ?, alarms = ? WHERE id = ?",
            (json.dumps(list(caught)), alarms, proof_id),
        )

    def spend(self, proof_id: int, seconds: float) -> None:
        """Record the time spent until now."""
        self._database.execute("UPDATE proof SET spent = ? WHERE id = ?", (seconds, proof_id))

    def add_hint(self, proof_id: int) -> None:
        """Record that a hint was given."""
        self._database.execute("UPDATE proof SET hints = hints + 1 WHERE id = ?", (proof_id,))

    def add_claim(self, proof_id: int) -> None:
        """Record that a wrong version was claimed to be correct."""
        self._database.execute("UPDATE proof SET claims = claims + 1 WHERE id = ?", (proof_id,))

    def end(self, proof_id: int, ending: Ending, grade: int | None) -> Proof:
        """Record how a proof ended, and return it."""
        self._database.execute(
            "UPDATE proof SET outcome = ?, grade = ?, ended_at = ? WHERE id = ?",
            (ending, grade, now(), proof_id),
        )
        return self.get(proof_id)

    def _select(self, where: str, *parameters: int | str) -> list[Proof]:
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM proof {where}", parameters)
        return [
            Proof(
                id=row[0],
                kata=row[1],
                goal=Goal(row[2]),
                versions=tuple(json.loads(row[3])),
                budget=row[4],
                started_at=datetime.fromisoformat(row[5]),
                spent=row[6],
                hints=row[7],
                claims=row[8],
                caught=tuple(json.loads(row[9])),
                alarms=row[10],
                ending=Ending(row[11]) if row[11] else None,
                grade=row[12],
                ended_at=moment(row[13]),
            )
            for row in rows
        ]
