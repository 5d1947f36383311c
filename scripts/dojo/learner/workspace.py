"""A learner's file of one kata: which attempt it is, its backups, and their way back.

What is planted in it, its attempt knows, a row of the history. A file that belongs to none is the
one that came with the kata.
"""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dojo.errors import DojoError, typed
from dojo.files import read_bytes, revision, write_atomically
from dojo.kata.kata import Kata
from dojo.project import Project


@dataclass(frozen=True)
class Backup:
    """An earlier text of the learner's file."""

    number: int
    path: Path
    saved_at: datetime
    reason: str
    attempt: int | None


class Workspace:
    """The learner's file of one kata. Whatever overwrites it goes through `replace`."""

    def __init__(self, project: Project, kata: Kata, *, proof: bool = False) -> None:
        """Open the workspace of botched.py, or of the proof; nothing is written yet."""
        self.kata = kata
        self._file = kata.proof if proof else kata.botched
        self._folder = project.state / "katas" / kata.name / ("proof" if proof else "")
        self._state = self._folder / "state.json"

    def content(self) -> bytes | None:
        """Return the content of the learner's file, or None if it is missing.

        Bytes, not text: a backup of a file that is not even UTF-8 still loses nothing.
        """
        return read_bytes(self._file)

    def text(self) -> str:
        """Return the text of the learner's file; empty if it is missing."""
        return (self.content() or b"").decode("utf-8", errors="replace")

    def attempt(self) -> int | None:
        """Return the id of the attempt that the file belongs to, if it belongs to one."""
        state = self._read_state()
        pending = state.get("pending")
        if pending is not None and revision(self.content() or b"") != pending["old"]:
            # A replacement was cut off, but not before the file had its new text.
            state = pending
        # Before attempts alone knew what is planted, that stood here too.
        state = state.get("planting", state)
        attempt: int | None = state.get("attempt")
        return attempt

    def record(self, attempt: int) -> None:
        """Record which attempt the file belongs to, without touching the file."""
        self._write_state({"attempt": attempt})

    def replace(self, new: bytes, attempt: int | None, reason: str) -> Backup | None:
        """Give the file a new content, keeping the old one; return the backup if one was needed.

        One at a time: whoever comes second keeps what the first has written.
        """
        try:
            with self._lock():
                return self._replace(new, attempt, reason)
        except OSError as error:
            raise DojoError(
                f"{self._file} cannot be replaced: {error.strerror}; no text is lost"
            ) from None

    def _lock(self) -> AbstractContextManager[object]:
        from filelock import FileLock  # not above: plain pytest replaces nothing, and may lack it

        self._folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self._folder / "lock")

    def _replace(self, new: bytes, attempt: int | None, reason: str) -> Backup | None:
        old = self.content()
        current = self.attempt()
        backup = None
        if old is not None and old != new:
            backup = self._save(old, current, reason)
        pending = {"old": revision(old or b""), "attempt": attempt}
        self._write_state({"attempt": current, "pending": pending})
        if old != new:
            write_atomically(self._file, new)
        self._write_state({"attempt": attempt})
        return backup

    def backups(self) -> list[Backup]:
        """Return the earlier texts, oldest first."""
        found = []
        for path in sorted(self._folder.glob("[0-9]*.py"), key=lambda path: int(path.stem)):
            try:
                facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                saved_at, reason = datetime.fromisoformat(facts["saved_at"]), str(facts["reason"])
                attempt = facts["attempt"]
            except (OSError, ValueError, TypeError, KeyError):  # the text is there all the same
                saved_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                reason, attempt = "not known", None
            found.append(Backup(int(path.stem), path, saved_at, reason, attempt))
        return found

    def restore(self, number: int | None = None) -> Backup:
        """Bring back an earlier text (the newest unless a number is given), keeping the present.

        Raises `DojoError` when there is no such text.
        """
        backups = self.backups()
        if not backups:
            raise DojoError(f"{self.kata.name}: nothing to undo; no earlier text is kept")
        wanted = backups[-1].number if number is None else number
        chosen = next((backup for backup in backups if backup.number == wanted), None)
        if chosen is None:
            raise DojoError(
                f"{self.kata.name} has no kept text {number}; "
                f"{typed('undo', self.kata.name, '--list')} shows them"
            )
        text = read_bytes(chosen.path)
        if text is None:
            raise DojoError(f"{chosen.path} is gone; {typed('undo', self.kata.name, '--list')}")
        self.replace(text, chosen.attempt, "undo")
        return chosen

    def _save(self, content: bytes, attempt: int | None, reason: str) -> Backup:
        number = max((backup.number for backup in self.backups()), default=0) + 1
        path = self._folder / f"{number:04}.py"
        saved_at = datetime.now(UTC)
        facts = {"attempt": attempt, "saved_at": saved_at.isoformat(), "reason": reason}
        # The facts first: a backup exists from the moment that its text does.
        write_atomically(path.with_suffix(".json"), json.dumps(facts).encode())
        write_atomically(path, content)
        return Backup(number, path, saved_at, reason, attempt)

    @property
    def damaged(self) -> bool:
        """Say whether what is known of the file's attempt cannot be read."""
        return self._state.exists() and not self._read_state()

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _write_state(self, state: dict[str, Any]) -> None:
        write_atomically(self._state, json.dumps(state).encode())
