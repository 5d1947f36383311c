"""What the learner did: attempts at katas, the runs of their tests, and the hints given."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dojo.history.dailies import Dailies
from dojo.history.database import Database, moment, now
from dojo.history.moves import Moves
from dojo.history.proofs import Proofs
from dojo.history.reviews import Reviews
from dojo.history.sessions import Sessions


@dataclass(frozen=True)
class Attempt:
    """One planting of a kata, and how far the learner has come with it."""

    id: int
    kata: str
    planted: tuple[str, ...]  # ids of bugs; none if nobody knows any more what was planted
    started_at: datetime
    revealed_at: datetime | None
    solved_at: datetime | None


@dataclass(frozen=True)
class Run:
    """One run of a kata's whole test file against one text of the learner's."""

    revision: str
    passed: int
    failed: int
    gone: tuple[str, ...] | None  # ids of planted bugs; none if they were not counted
    solved: bool
    seconds: float
    seed: int | None = None  # of the random data; none in what was recorded without it
    whole: bool = True  # whether it came to its end


class History:
    """The learner's attempts, `moves`, practice `sessions`, `proofs`, `reviews`, `dailies`.

    A command has one connection.
    """

    def __init__(self, path: Path) -> None:
        """Open the database, or raise `DojoError` if it cannot be used."""
        self.database = Database(path)
        self.sessions = Sessions(self.database)
        self.moves = Moves(self.database)
        self.proofs = Proofs(self.database)
        self.dailies = Dailies(self.database)
        self.reviews = Reviews(self.database)

    def __enter__(self) -> "History":
        """Return the history itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database."""
        self.close()

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    @property
    def trouble(self) -> str:
        """Return why what is recorded ends with this process; empty where it lasts."""
        return self.database.trouble

    def notices(self) -> list[str]:
        """Return what the person should know and was not told yet; a front end shows it once."""
        return self.database.notices()

    def start(self, kata: str, planted: Sequence[str]) -> int:
        """Record that the kata was planted afresh; return the attempt's id."""
        row = self.database.execute(
            "INSERT INTO attempt (kata, planted, started_at) VALUES (?, ?, ?)",
            (kata, json.dumps(list(planted)), now()),
        ).lastrowid
        assert row is not None
        return row

    def attempt(self, attempt_id: int) -> Attempt | None:
        """Return one attempt, or None if the history has lost it."""
        found = self._attempts("WHERE id = ?", attempt_id)
        return found[0] if found else None

    def attempts(self, kata: str) -> list[Attempt]:
        """Return every attempt at a kata, oldest first."""
        return self._attempts("WHERE kata = ? ORDER BY started_at, id", kata)

    def solved_katas(self) -> set[str]:
        """Return the names of the katas that were solved before they were revealed."""
        rows = self.database.execute(
            "SELECT DISTINCT kata FROM attempt WHERE solved_at IS NOT NULL "
            "AND (revealed_at IS NULL OR revealed_at > solved_at)"
        )
        return {kata for (kata,) in rows}

    def add_run(self, attempt_id: int, run: Run) -> None:
        """Record a run, and the solve if it is the attempt's first.

        What is gone can be told later, by `count`.
        """
        with self.database.transaction():
            self.database.execute(
                "INSERT INTO run (attempt, at, revision, passed, failed, gone, solved, seconds, "
                "seed, whole) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    attempt_id,
                    now(),
                    run.revision,
                    run.passed,
                    run.failed,
                    json.dumps(run.gone),
                    run.solved,
                    run.seconds,
                    run.seed,
                    run.whole,
                ),
            )
            if run.solved:
                self.database.execute(
                    "UPDATE attempt SET solved_at = ? WHERE id = ? AND solved_at IS NULL",
                    (now(), attempt_id),
                )

    def count(self, attempt_id: int, gone: Sequence[str], revision: str) -> None:
        """Record which planted bugs are gone from the text of that revision."""
        self.database.execute(
            "UPDATE run SET gone = ? WHERE attempt = ? AND revision = ?",
            (json.dumps(list(gone)), attempt_id, revision),
        )

    def last_run(self, attempt_id: int) -> Run | None:
        """Return the newest run of an attempt, if there is one."""
        runs = self.timed_runs(attempt_id)
        return runs[-1][1] if runs else None

    def timed_runs(self, attempt_id: int) -> list[tuple[datetime, Run]]:
        """Return the runs of an attempt, oldest first, each with its moment."""
        rows = self.database.execute(
            "SELECT at, revision, passed, failed, gone, solved, seconds, seed, whole FROM run "
            "WHERE attempt = ? ORDER BY id",
            (attempt_id,),
        )
        return [
            (
                datetime.fromisoformat(at),
                Run(rev, passed, failed, _names(gone), bool(solved), seconds, seed, bool(whole)),
            )
            for at, rev, passed, failed, gone, solved, seconds, seed, whole in rows
        ]

    def last_count(self, attempt_id: int, until: str | None = None) -> tuple[str, ...]:
        """Return the bugs that were gone when an attempt's were last counted, up to a moment."""
        row = self.database.execute(
            "SELECT gone FROM run WHERE attempt = ? AND gone != 'null' AND (? IS NULL OR at <= ?) "
            "ORDER BY id DESC LIMIT 1",
            (attempt_id, until, until),
        ).fetchone()
        return tuple(json.loads(row[0])) if row else ()

    def runs(self, attempt_id: int) -> int:
        """Return how often the tests ran in an attempt."""
        row = self.database.execute("SELECT COUNT(*) FROM run WHERE attempt = ?", (attempt_id,))
        return int(row.fetchone()[0])

    def hints(self, attempt_id: int) -> list[tuple[str, int]]:
        """Return an attempt's hints in order: bug ids with the hint's number, from 0."""
        return self.database.execute(
            "SELECT bug, level FROM hint WHERE attempt = ? ORDER BY id", (attempt_id,)
        ).fetchall()

    def add_hint(self, attempt_id: int, bug_id: str, level: int) -> None:
        """Record that a hint was given."""
        self.database.execute(
            "INSERT OR IGNORE INTO hint (attempt, at, bug, level) VALUES (?, ?, ?, ?)",
            (attempt_id, now(), bug_id, level),
        )

    def reveal(self, attempt_id: int) -> None:
        """Record that the learner was shown the answer, at the first time."""
        self.database.execute(
            "UPDATE attempt SET revealed_at = ? WHERE id = ? AND revealed_at IS NULL",
            (now(), attempt_id),
        )

    def _attempts(self, where: str, parameter: int | str) -> list[Attempt]:
        rows = self.database.execute(
            f"SELECT id, kata, planted, started_at, revealed_at, solved_at FROM attempt {where}",
            (parameter,),
        )
        return [
            Attempt(
                row[0],
                row[1],
                tuple(json.loads(row[2])),
                datetime.fromisoformat(row[3]),
                moment(row[4]),
                moment(row[5]),
            )
            for row in rows
        ]


def _names(text: str) -> tuple[str, ...] | None:
    names = json.loads(text)
    return None if names is None else tuple(names)
