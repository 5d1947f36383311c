"""Writes files so that a reader, or a kill at any moment, sees the old text or the new one.

A section of a file is what stands between the comments `<!-- NAME: ... -->` and
`<!-- end of NAME -->`, which say who writes it.
"""

import hashlib
import os
import re
import tempfile
from pathlib import Path

from dojo.errors import DojoError


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
    """Return the file's content, or None where there is no file.

    Raises `DojoError` where there is one that cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DojoError(f"{path} cannot be read: {error.strerror}") from None


def read_section(path: Path, name: str) -> str:
    """Return the text of a section, or raise `DojoError` if the file has none of that name."""
    return _section(path, name)[1].removesuffix("\n")


def write_section(path: Path, name: str, text: str) -> None:
    """Put the text into a section, or raise `DojoError` if the file has none of that name."""
    before, _, after = _section(path, name)
    write_atomically(path, f"{before}{text}\n{after}".encode())


def _section(path: Path, name: str) -> tuple[str, str, str]:
    """Return what stands before the section's text, the text, and what stands behind it."""
    text = path.read_text(encoding="utf-8")
    first = re.search(rf"<!-- {name}: .*?-->\n", text)
    last = text.find(f"<!-- end of {name} -->", first.end() if first else 0)
    if first is None or last < 0:
        raise DojoError(f"{path.name} lacks the comments '<!-- {name}: ... -->' to write between")
    return text[: first.end()], text[first.end() : last], text[last:]


def revision(source: bytes) -> str:
    """Return the name of a text: the start of its SHA-256."""
    return hashlib.sha256(source).hexdigest()[:12]
