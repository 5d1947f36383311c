"""The SQLite database under `.dojo/`: opened, migrated if of an older version, and locked to write.

A commit is on disk when it returns, so that a power cut loses nothing that was recorded.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
    """
    CREATE TABLE session (
        id INTEGER PRIMARY KEY,
        started_at TEXT NOT NULL,
        interview INTEGER NOT NULL,
        interview_on TEXT,
        ended_at TEXT
    );
    CREATE TABLE exercise (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL REFERENCES session (id),
        kata TEXT NOT NULL,
        bugs TEXT NOT NULL,
        budget REAL NOT NULL,
        spent REAL NOT NULL DEFAULT 0,
        attempt INTEGER REFERENCES attempt (id),
        outcome TEXT,
        grade INTEGER,
        ended_at TEXT
    );
    CREATE INDEX exercise_session ON exercise (session);
    CREATE INDEX exercise_kata ON exercise (kata);
    """,
)


class Database:
    """A connection to the history."""

    def __init__(self, path: Path) -> None:
        """Open the database, or raise `DojoError` if it cannot be used."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=10, isolation_level=None)
            self.execute("PRAGMA journal_mode = WAL")
            self.execute("PRAGMA synchronous = FULL")
            self.execute("PRAGMA foreign_keys = ON")
            self._migrate(path)
        except (OSError, sqlite3.Error) as error:
            raise DojoError(f"the history {path} cannot be used: {error}") from None

    def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._connection.execute(statement, parameters)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block does, or none of it."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def _migrate(self, path: Path) -> None:
        with self.transaction():
            (version,) = self.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise DojoError(f"the history {path} was written by a newer version of the katas")
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    self.execute(statement)
            self.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def now() -> str:
    """Return the present moment as the database keeps it."""
    return datetime.now(UTC).isoformat()


def moment(text: str | None) -> datetime | None:
    """Return a moment that the database kept, if it kept one."""
    return datetime.fromisoformat(text) if text else None
