"""Writes files so that a reader, or a kill at any moment, sees the old text or the new one."""

import hashlib
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file's content in one step, keeping its permissions and following a link."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_bytes(path: Path) -> bytes | None:
    """Return the file's content, or None where there is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def revision(source: bytes) -> str:
    """Return the name of a text: the start of its SHA-256."""
    return hashlib.sha256(source).hexdigest()[:12]
