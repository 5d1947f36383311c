"""A history as one JSON file, and such a file brought into another history.

An export of an older version stays readable for as long as MIGRATIONS only grow: its rows are put
into an empty database of its version, which is then migrated like any old one before the merge.
"""

import json
import math
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dojo.errors import DojoError, typed
from dojo.history.dailies import Dailies
from dojo.history.database import Database, now
from dojo.history.history import History
from dojo.history.merge import merge, rows
from dojo.history.migrations import MIGRATIONS
from dojo.history.proofs import Proofs
from dojo.history.reviews import Reviews
from dojo.history.sessions import Sessions

_FORMAT = "history of ml-bug-katas"
_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"
_MOMENTS = {"at", "started_at", "revealed_at", "solved_at", "ended_at"}
_LISTS = {"planted", "gone", "bugs", "versions", "caught"}
_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    sqlite3.Error,
)


def export_history(history: History, learner: str | None = None) -> str:
    """Return the whole history as JSON: the schema's version, and every table's rows.

    The learner's name is in it if it is given.
    """
    database = history.database
    with database.transaction():  # one moment of it, whoever else writes
        names = [name for (name,) in database.execute(_TABLES)]
        tables = {name: rows(database, name) for name in names}
    document = {
        "format": _FORMAT,
        "version": len(MIGRATIONS),
        "exported_at": now(),
        **({"learner": learner} if learner else {}),
        "tables": tables,
    }
    return json.dumps(document, indent=1)


def import_history(history: History, content: bytes, name: str) -> Counter[str]:
    """Merge an export into the history, all or none; return how many rows were new, by table.

    Raises `DojoError`, which calls the file by that name, for anything but a sound export.
    """
    with opened(content, name) as (theirs, _):
        return merge(theirs.database, history.database)


@contextmanager
def opened(content: bytes, name: str) -> Iterator[tuple[History, str | None]]:
    """Yield the history in an export, and the learner's name if it has one.

    Raises `DojoError`, which calls the file by that name, for anything but a sound export.
    """
    version, learner, tables = _document(content, name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history.sqlite"
        with _refusing(name):
            _restore(path, version, tables)
        with History(path) as theirs:
            with _refusing(name):
                _check(theirs.database)
            yield theirs, learner


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Say in one line what is wrong with the file."""
    try:
        yield
    except _DAMAGE as error:
        raise DojoError(f"{name} is damaged: {error}; nothing was imported") from None


def _document(content: bytes, name: str) -> tuple[int, str | None, Any]:
    try:
        document = json.loads(content)
        known, version, tables = (document[key] for key in ("format", "version", "tables"))
        learner = document.get("learner")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DojoError(f"{name} is no whole export; {typed('export')} makes one") from None
    if known != _FORMAT or type(version) is not int or version < 1:
        raise DojoError(f"{name} is no export of these katas; {typed('export')} makes one")
    if version > len(MIGRATIONS):
        raise DojoError(
            f"{name} was exported by a newer version of the katas; update this checkout first"
        )
    return version, learner if isinstance(learner, str) else None, tables


def _restore(path: Path, version: int, tables: Any) -> None:
    """Make a database of that version with these rows."""
    database = sqlite3.connect(path)
    try:
        for migration in MIGRATIONS[:version]:
            database.executescript(migration.script)
        names = {name for (name,) in database.execute(_TABLES)}
        if names != tables.keys():
            raise ValueError(f"its tables should be {', '.join(sorted(names))}")
        for name in names:
            _fill(database, name, tables[name])
        if database.execute("PRAGMA foreign_key_check").fetchone():
            raise ValueError("a row refers to one that is not there")
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
    finally:
        database.close()


def _fill(database: sqlite3.Connection, table: str, entries: list[dict[str, Any]]) -> None:
    columns = {
        name: (kind, required or key)
        for _, name, kind, required, _, key in database.execute(f"PRAGMA table_info({table})")
    }
    marks = ", ".join("?" * len(columns))
    for number, entry in enumerate(entries, 1):
        if entry.keys() != columns.keys():
            raise ValueError(f"{table} {number} should have {', '.join(columns)}")
        for name, (kind, required) in columns.items():
            value = entry[name]
            if value is None and not required:
                continue
            if not _fits(value, kind):
                raise ValueError(f"{table} {number}: {name} cannot be {value!r:.40}")
        database.execute(
            f"INSERT INTO {table} VALUES ({marks})", tuple(entry[name] for name in columns)
        )


def _fits(value: object, kind: str) -> bool:
    if kind == "REAL":
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, int if kind == "INTEGER" else str)


def _check(database: Database) -> None:
    """Raise `ValueError` for what the database would keep but no command could read."""
    for (table,) in database.execute(_TABLES).fetchall():
        for row in rows(database, table):
            for name, value in row.items():
                if name in _MOMENTS and value is not None:
                    _check_moment(value)
                if name == "grade" and value not in (None, 1, 2, 3, 4):
                    raise ValueError(f"{value} is no grade")
                if name in _LISTS:
                    _check_names(value)
    sessions = Sessions(database)
    sessions.all()
    sessions.exercises()
    Proofs(database).all()
    Reviews(database).all()
    Dailies(database).all()


def _check_names(text: str) -> None:
    names = json.loads(text)
    if names is None:  # bugs of a run that were not counted
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{text:.40} is no list of names")


def _check_moment(text: str) -> None:
    # The one spelling that `now` gives, for moments are also compared as texts.
    if datetime.fromisoformat(text).astimezone(UTC).isoformat() != text:
        raise ValueError(f"{text} is no moment in UTC")
