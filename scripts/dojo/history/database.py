"""The SQLite database under `.dojo/`: opened, migrated if of an older version, and locked to write.

A commit is on disk when it returns, so that a power cut loses nothing that was recorded. Where it
cannot be written, a full disk being the usual reason, a copy in memory takes its place for as long
as the process lives: a verdict needs no disk. Where it is damaged, it makes room for a new one.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dojo.errors import DojoError
from dojo.history.migrations import MIGRATIONS

_CANNOT_WRITE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Database:
    """A connection to the history, or to a copy of it in memory: `trouble` says why."""

    def __init__(self, path: Path) -> None:
        """Open the database, or raise `DojoError` if it cannot be used."""
        self.trouble = ""
        self._path = path
        self._connection = sqlite3.connect(":memory:")  # until the file is open
        self._notices: list[str] = []
        self._begun: list[tuple[str, tuple[Any, ...]]] = []  # of the transaction under way
        try:
            self._open()
        except (OSError, sqlite3.Error) as error:
            try:
                self._recover(error)
            except (OSError, sqlite3.Error):
                raise DojoError(f"the history {path} cannot be used: {error}") from None

    def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        try:
            cursor = self._connection.execute(statement, parameters)
        except sqlite3.Error as error:
            begun, self._begun = self._begun, []
            self._recover(error)
            for earlier in begun:
                self._connection.execute(*earlier)
            self._begun = begun
            cursor = self._connection.execute(statement, parameters)
        if self._connection.in_transaction:
            self._begun.append((statement, parameters))
        else:
            self._begun.clear()
        return cursor

    def note(self, notice: str) -> None:
        """Keep something that the person should know, and that stops nothing."""
        self._notices.append(notice)

    def notices(self) -> list[str]:
        """Return what the person should know and was not told yet."""
        notices, self._notices = self._notices, []
        return notices

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
            if self._connection.in_transaction:
                self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def _open(self) -> None:
        """Connect to the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self._path, timeout=10, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        if self._connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise _Damaged
        self._make_ready()

    def _make_ready(self) -> None:
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._migrate(self._path)

    def _recover(self, error: OSError | sqlite3.Error) -> None:
        """Go on without the file, or with a new one; raise the error where neither would help."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the kind, without its details
        if isinstance(error, _Damaged) or code in _DAMAGED:
            self._begin_anew()
        elif not self.trouble and (isinstance(error, OSError) or code in _CANNOT_WRITE):
            self._go_on_in_memory(getattr(error, "strerror", None) or str(error))
        else:
            raise error

    def _go_on_in_memory(self, reason: str) -> None:
        self.trouble = f"the history {self._path} cannot be written: {reason}"
        self.note(f"{self.trouble}. What you do is not recorded until that is put right")
        copy = _in_memory(self._path)
        self._connection.close()  # or it would keep others from writing
        self._connection = copy
        self._make_ready()

    def _begin_anew(self) -> None:
        """Put a damaged file aside, and begin a new one."""
        kept = self._path.with_name(f"damaged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.sqlite")
        self._connection.close()
        try:
            self._path.replace(kept)
            for end in ("-wal", "-shm"):  # which the new one must not take for its own
                beside = self._path.with_name(self._path.name + end)
                if beside.exists():
                    beside.replace(kept.with_name(kept.name + end))
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise DojoError(
                f"the history {self._path} is damaged, and no new one can be made: {error}"
            ) from None
        self.note(f"the history was damaged: it begins anew, and the damaged one is kept as {kept}")

    def _migrate(self, path: Path) -> None:
        with self.transaction():
            (version,) = self.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise DojoError(f"the history {path} was written by a newer version of the katas")
            for migration in MIGRATIONS[version:]:
                for statement in migration.script.split(";"):
                    self.execute(statement)
            self.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


class _Damaged(sqlite3.DatabaseError):
    """A file that opens, and of which a part is not as SQLite wrote it."""

    def __str__(self) -> str:
        return "damaged"


def _in_memory(path: Path) -> sqlite3.Connection:
    """Return a database in memory with all that can be read of the file."""
    memory = sqlite3.connect(":memory:", isolation_level=None)
    # Where SQLite may not write beside the file, it is to take it for one that nobody changes.
    for how in ("mode=ro", "immutable=1"):
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as file:
                file.backup(memory)
        except sqlite3.Error:
            continue
        break
    return memory


def now() -> str:
    """Return the present moment as the database keeps it."""
    return datetime.now(UTC).isoformat()


def moment(text: str | None) -> datetime | None:
    """Return a moment that the database kept, if it kept one."""
    return datetime.fromisoformat(text) if text else None
