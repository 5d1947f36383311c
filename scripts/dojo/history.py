"""What the learner did, in SQLite: attempts at katas and the runs of their tests."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dojo.errors import DojoError

# Migration n brings a database of version n to version n + 1. Only ever append.
MIGRATIONS = (
    """
    CREATE TABLE attempt (
        id INTEGER PRIMARY KEY,
        kata TEXT NOT NULL,
        planted TEXT NOT NULL,
        started_at TEXT NOT NULL,
        revealed_at TEXT,
        solved_at TEXT
    );
    CREATE INDEX attempt_kata ON attempt (kata);
    CREATE TABLE run (
        id INTEGER PRIMARY KEY,
        attempt INTEGER NOT NULL REFERENCES attempt (id),
        at TEXT NOT NULL,
        revision TEXT NOT NULL,
        passed INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        gone TEXT NOT NULL,
        solved INTEGER NOT NULL,
        seconds REAL NOT NULL
    );
    CREATE INDEX run_attempt ON run (attempt);
    CREATE TABLE hint (
        id INTEGER PRIMARY KEY,
        attempt INTEGER NOT NULL REFERENCES attempt (id),
        at TEXT NOT NULL,
        bug TEXT NOT NULL,
        level INTEGER NOT NULL,
        UNIQUE (attempt, bug, level)
    );
    """,
)


@dataclass(frozen=True)
class Attempt:
    """One planting of a kata, and how far the learner has come with it."""

    id: int
    kata: str
    planted: tuple[str, ...]
    started_at: datetime
    revealed_at: datetime | None
    solved_at: datetime | None


@dataclass(frozen=True)
class Run:
    """One run of a kata's whole test file against one text of the learner's."""

    revision: str
    passed: int
    failed: int
    gone: tuple[str, ...]
    solved: bool
    seconds: float


class History:
    """The database under `.dojo/`: made at the first use, migrated if of an older version."""

    def __init__(self, path: Path) -> None:
        """Open the database, or raise `DojoError` if it cannot be used."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate(path)
        except (OSError, sqlite3.Error) as error:
            raise DojoError(f"the history {path} cannot be used: {error}") from None

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def start(self, kata: str, planted: Sequence[str]) -> int:
        """Record that the kata was planted afresh; return the attempt's id."""
        row = self._db.execute(
            "INSERT INTO attempt (kata, planted, started_at) VALUES (?, ?, ?) RETURNING id",
            (kata, json.dumps(list(planted)), _now()),
        ).fetchone()
        return int(row[0])

    def attempt(self, attempt_id: int) -> Attempt | None:
        """Return one attempt, or None if the history has lost it."""
        found = self._attempts("WHERE id = ?", attempt_id)
        return found[0] if found else None

    def attempts(self, kata: str) -> list[Attempt]:
        """Return every attempt at a kata, oldest first."""
        return self._attempts("WHERE kata = ? ORDER BY id", kata)

    def solved_katas(self) -> set[str]:
        """Return the names of the katas that were solved before they were revealed."""
        rows = self._db.execute(
            "SELECT DISTINCT kata FROM attempt WHERE solved_at IS NOT NULL "
            "AND (revealed_at IS NULL OR revealed_at > solved_at)"
        )
        return {kata for (kata,) in rows}

    def add_run(self, attempt_id: int, run: Run) -> None:
        """Record a run, and the solve if it is the attempt's first."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO run (attempt, at, revision, passed, failed, gone, solved, seconds) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    attempt_id,
                    _now(),
                    run.revision,
                    run.passed,
                    run.failed,
                    json.dumps(list(run.gone)),
                    run.solved,
                    run.seconds,
                ),
            )
            if run.solved:
                self._db.execute(
                    "UPDATE attempt SET solved_at = ? WHERE id = ? AND solved_at IS NULL",
                    (_now(), attempt_id),
                )

    def last_run(self, attempt_id: int) -> Run | None:
        """Return the newest run of an attempt, if there is one."""
        row = self._db.execute(
            "SELECT revision, passed, failed, gone, solved, seconds FROM run "
            "WHERE attempt = ? ORDER BY id DESC LIMIT 1",
            (attempt_id,),
        ).fetchone()
        if row is None:
            return None
        return Run(row[0], row[1], row[2], tuple(json.loads(row[3])), bool(row[4]), row[5])

    def runs(self, attempt_id: int) -> int:
        """Return how often the tests ran in an attempt."""
        row = self._db.execute("SELECT COUNT(*) FROM run WHERE attempt = ?", (attempt_id,))
        return int(row.fetchone()[0])

    def hints(self, attempt_id: int) -> set[tuple[str, int]]:
        """Return the hints given in an attempt: bug ids with the hint's number, from 0."""
        rows = self._db.execute("SELECT bug, level FROM hint WHERE attempt = ?", (attempt_id,))
        return {(bug, level) for bug, level in rows}

    def add_hint(self, attempt_id: int, bug_id: str, level: int) -> None:
        """Record that a hint was given."""
        self._db.execute(
            "INSERT OR IGNORE INTO hint (attempt, at, bug, level) VALUES (?, ?, ?, ?)",
            (attempt_id, _now(), bug_id, level),
        )

    def reveal(self, attempt_id: int) -> None:
        """Record that the learner was shown the answer, at the first time."""
        self._db.execute(
            "UPDATE attempt SET revealed_at = ? WHERE id = ? AND revealed_at IS NULL",
            (_now(), attempt_id),
        )

    def _attempts(self, where: str, parameter: int | str) -> list[Attempt]:
        rows = self._db.execute(
            f"SELECT id, kata, planted, started_at, revealed_at, solved_at FROM attempt {where}",
            (parameter,),
        )
        return [
            Attempt(
                row[0],
                row[1],
                tuple(json.loads(row[2])),
                datetime.fromisoformat(row[3]),
                datetime.fromisoformat(row[4]) if row[4] else None,
                datetime.fromisoformat(row[5]) if row[5] else None,
            )
            for row in rows
        ]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _migrate(self, path: Path) -> None:
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise DojoError(f"the history {path} was written by a newer version of the katas")
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _now() -> str:
    return datetime.now(UTC).isoformat()
