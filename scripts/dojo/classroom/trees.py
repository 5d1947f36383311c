"""The files of a folder or an archive, as they were handed in.

Nothing is unpacked: what is wanted of an archive is read out of it, up to a limit. So neither a
path that leads out of it, nor a link, nor a file that grows without end can do harm.
"""

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from dojo.errors import DojoError

MOST_BYTES = 128 * 2**10  # of a solution
MOST_LINES = 4_000
_MOST_NESTED = 8 * 2**20  # of an archive inside an archive
_MOST_FILES = 200_000
_PASSED_BY = ("__pycache__", "__MACOSX", "venv", "node_modules", "site-packages")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class Unreadable(Exception):
    """A file that cannot be taken for a solution; the message says why."""


@dataclass(frozen=True)
class Entry:
    """A file: its path from the top, and what reads it, or raises `Unreadable`."""

    path: PurePosixPath
    read: Callable[[], bytes]


def entries(source: Path) -> Iterator[Entry]:
    """Yield the files of a folder or of a zip; archives among them are looked into, once.

    What is hidden is passed by, such as a repository's history.
    """
    if source.is_dir():
        found = _of_folder(source)
    else:
        try:
            archive = zipfile.ZipFile(source)
        except _DAMAGED as error:
            raise DojoError(f"{source} is no archive that can be read: {error}") from None
        found = _of_archive(archive, PurePosixPath())
    for number, entry in enumerate(found, 1):
        if number > _MOST_FILES:
            raise DojoError(f"{source} holds more than {_MOST_FILES:,} files; name a part of it")
        if entry.path.suffix == ".zip":
            yield from _nested(entry)
        else:
            yield entry


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return a file's content, or raise `Unreadable`; a link is not followed."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise Unreadable("is a link")
        if not stat.S_ISREG(mode):
            raise Unreadable("is not a file")
        with path.open("rb") as file:
            return _limited(file.read(most + 1), most)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None


def decoded(content: bytes) -> str:
    """Return the text of a solution, or raise `Unreadable`."""
    if b"\0" in content:
        raise Unreadable("is binary")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"is not UTF-8: byte {error.start + 1} is {content[error.start]:#x}"
        ) from None
    if (lines := text.count("\n")) > MOST_LINES:
        raise Unreadable(f"has {lines:,} lines, more than {MOST_LINES:,}")
    return text


def _of_folder(folder: Path) -> Iterator[Entry]:
    for place, names, files in os.walk(folder):
        links = [name for name in names if (Path(place) / name).is_symlink()]
        names[:] = sorted(name for name in names if not _is_passed_by(name))
        for name in sorted([*files, *links]):
            path = Path(place) / name
            most = _MOST_NESTED if path.suffix == ".zip" else MOST_BYTES
            if not _is_passed_by(name):
                inside = PurePosixPath(path.relative_to(folder).as_posix())
                yield Entry(inside, partial(read_file, path, most))


def _nested(entry: Entry) -> Iterator[Entry]:
    """Yield the files of an archive among the files; of one that cannot be read, itself."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(entry.read()))
    except Unreadable:
        yield entry
    except _DAMAGED:
        yield Entry(entry.path, partial(_refuse, "is no archive that can be read"))
    else:
        yield from _of_archive(archive, entry.path)


def _of_archive(archive: zipfile.ZipFile, at: PurePosixPath) -> Iterator[Entry]:
    for member in archive.infolist():
        path = PurePosixPath(member.filename.lstrip("/"))
        if member.is_dir() or any(map(_is_passed_by, path.parts)):
            continue
        read: Callable[[], bytes] = partial(_read_member, archive, member)
        if ".." in path.parts or member.filename.startswith("/"):
            read = partial(_refuse, "leads out of its archive")
        yield Entry(at / path, read)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if stat.S_ISLNK(member.external_attr >> 16):
        raise Unreadable("is a link")
    if member.flag_bits & 1:
        raise Unreadable("is encrypted")
    # Others unpack what they have read in one go, whatever it comes to.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Unreadable("is packed in a way that is not read here")
    nested = PurePosixPath(member.filename).suffix == ".zip"
    most = _MOST_NESTED if nested else MOST_BYTES
    try:
        with archive.open(member) as file:
            return _limited(file.read(most + 1), most)
    except _DAMAGED:
        raise Unreadable("is damaged") from None


def _limited(content: bytes, most: int) -> bytes:
    if len(content) > most:
        raise Unreadable(f"is larger than {most // 2**10} kB")
    return content


def _refuse(reason: str) -> bytes:
    raise Unreadable(reason)


def _is_passed_by(name: str) -> bool:
    return name in _PASSED_BY or (name.startswith(".") and name != "..")
