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
from dojo.history.migrations import MIGRATIONS


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

    def __enter__(self) -> "Database":
        """Return the database itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

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
            for migration in MIGRATIONS[version:]:
                for statement in migration.script.split(";"):
                    self.execute(statement)
            self.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def now() -> str:
    """Return the present moment as the database keeps it."""
    return datetime.now(UTC).isoformat()


def moment(text: str | None) -> datetime | None:
    """Return a moment that the database kept, if it kept one."""
    return datetime.fromisoformat(text) if text else None
