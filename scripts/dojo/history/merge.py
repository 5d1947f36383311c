"""Merges one history into another: new ids, references kept, nothing twice."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from dojo.history.database import Database
from dojo.history.sessions import Ending

Row = dict[str, Any]

# What tells whether two rows are the same, whatever their ids; and which table a column refers to.
# Tables stand after those that they refer to. Exercises are the same by their place in a session.
_KEYS = {
    "attempt": ("kata", "started_at"),
    "run": ("attempt", "at"),
    "hint": ("attempt", "bug", "level"),
    "move": ("attempt", "at"),
    "session": ("started_at",),
    "proof": ("kata", "started_at"),
    "daily": ("day",),
    "review": ("at", "place", "kata"),
}
_REFERENCES = {"attempt": "attempt", "session": "session"}


def rows(database: Database, table: str) -> list[Row]:
    """Return a table's rows by column, oldest first."""
    cursor = database.execute(f"SELECT * FROM {table} ORDER BY id")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def merge(theirs: Database, ours: Database) -> Counter[str]:
    """Bring their rows into our history, all or none; return how many were new, by table."""
    _end_sessions(theirs)
    with ours.transaction():
        return _Merger(theirs, ours).run()


def _end_sessions(theirs: Database) -> None:
    """End what is unfinished, for the learner's text is not here to go on with."""
    theirs.execute(
        "UPDATE session SET ended_at = coalesce("
        "(SELECT max(ended_at) FROM exercise WHERE session = session.id), started_at) "
        "WHERE ended_at IS NULL"
    )
    theirs.execute(
        "UPDATE exercise SET outcome = ?, "
        "ended_at = (SELECT ended_at FROM session WHERE id = exercise.session) "
        "WHERE outcome IS NULL",
        (Ending.SKIPPED,),
    )
    theirs.execute(
        "UPDATE proof SET outcome = ?, ended_at = started_at WHERE outcome IS NULL",
        (Ending.SKIPPED,),
    )


class _Merger:
    def __init__(self, theirs: Database, ours: Database) -> None:
        self._theirs = theirs
        self._ours = ours
        self._ids: dict[str, dict[int, int]] = {}  # by table: theirs to ours
        self._new: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        for table, key in _KEYS.items():
            self._merge(table, key)
        self._finish_attempts()
        self._merge_exercises()
        return self._new

    def _merge(self, table: str, key: tuple[str, ...]) -> None:
        ids = self._ids[table] = {}
        condition = " AND ".join(f"{column} = ?" for column in key)
        for row in rows(self._theirs, table):
            their_id, row = row["id"], self._translated(row)
            found = self._ours.execute(
                f"SELECT id FROM {table} WHERE {condition}", tuple(row[column] for column in key)
            ).fetchone()
            ids[their_id] = found[0] if found else self._insert(table, row)

    def _finish_attempts(self) -> None:
        """Take over how an attempt ended that an earlier import brought unfinished."""
        for row in rows(self._theirs, "attempt"):
            self._ours.execute(
                "UPDATE attempt SET revealed_at = coalesce(revealed_at, ?), "
                "solved_at = coalesce(solved_at, ?) WHERE id = ?",
                (row["revealed_at"], row["solved_at"], self._ids["attempt"][row["id"]]),
            )

    def _merge_exercises(self) -> None:
        theirs: dict[int, list[Row]] = {}
        for row in map(self._translated, rows(self._theirs, "exercise")):
            theirs.setdefault(row["session"], []).append(row)
        for session, exercises in theirs.items():
            ours = self._ours.execute(
                "SELECT id FROM exercise WHERE session = ? ORDER BY id", (session,)
            ).fetchall()
            for row in exercises[len(ours) :]:
                self._insert("exercise", row)
            for (our_id,), row in zip(ours, exercises, strict=False):
                self._finish_exercise(our_id, row)

    def _finish_exercise(self, our_id: int, row: Row) -> None:
        """Take over how an exercise ended that an earlier import brought unfinished."""
        if row["grade"] is None:
            return
        ended = {name: row[name] for name in ("spent", "attempt", "outcome", "grade", "ended_at")}
        changes = ", ".join(f"{name} = ?" for name in ended)
        self._ours.execute(
            f"UPDATE exercise SET {changes} WHERE id = ? AND grade IS NULL",
            (*ended.values(), our_id),
        )

    def _translated(self, row: Mapping[str, Any]) -> Row:
        """Return a row of theirs without its id and with our ids in its references."""
        translated = {name: value for name, value in row.items() if name != "id"}
        for column, table in _REFERENCES.items():
            if translated.get(column) is not None:
                translated[column] = self._ids[table][translated[column]]
        return translated

    def _insert(self, table: str, row: Row) -> int:
        self._new[table] += 1
        marks = ", ".join("?" * len(row))
        (our_id,) = self._ours.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks}) RETURNING id",
            tuple(row.values()),
        ).fetchone()
        return int(our_id)
