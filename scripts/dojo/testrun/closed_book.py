"""Sees that a proof calls the code under test and does not read it, nor the kata's files.

Python tells an audit hook of every file that is opened and every code object that is asked for:
https://docs.python.org/3/library/audit_events.html
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, FunctionType

from _pytest.outcomes import Failed

from dojo.testrun.loading import is_implementation, is_of_implementation

PROOF = "proof.py"


class Reads(Failed):
    """The proof reads what it is to test."""


class _Book:
    """What is closed at the moment, and what was read of it all the same."""

    folder: Path | None = None
    tested: Path | None = None
    read: str = ""


_hears: list[bool] = []  # not empty once the hook is there, which is then for good


@contextlib.contextmanager
def closed_book(folder: Path, tested: Path | None) -> Iterator[Callable[[], str]]:
    """Let the block, part of a proof, read no file of this folder, nor the one that it tests.

    `Reads` is raised where it does. The block may swallow that: what is yielded tells.
    """
    if not _hears:
        sys.addaudithook(_hear)
        _hears.append(True)
    _Book.folder, _Book.tested, _Book.read = folder.resolve(), tested, ""
    try:
        yield lambda: _Book.read
    finally:
        _Book.folder = None


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _Book.folder is None or event not in ("open", "object.__getattr__"):
        return
    said = _opened(arguments[0]) if event == "open" else _asked_for(*arguments)
    if said and _called_by_proof():
        _Book.read = said
        raise Reads(said, pytrace=False)


def _called_by_proof() -> bool:
    """Say whether the proof's own code leads here, not what runs it, nor what it tests.

    What is tested may read itself: torch does, where it makes a note of the stack.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_of_implementation(frame):
        if Path(frame.f_code.co_filename).name == PROOF:
            return True
        frame = frame.f_back
    return False


def _opened(path: object) -> str:
    if not isinstance(path, (str, bytes, os.PathLike)):
        return ""
    file = Path(os.path.realpath(os.fsdecode(path)))
    if file == _Book.tested:
        return "the proof reads the text of the code under test; it may only call it"
    allowed = file.name == PROOF or "__pycache__" in file.parts
    if _Book.folder in file.parents and not allowed:
        return f"the proof reads {file.name}; it may only call the code under test"
    return ""


def _asked_for(owner: object, name: object) -> str:
    if name != "__code__" or not isinstance(owner, FunctionType):
        return ""
    asking = Path(sys._getframe(2).f_code.co_filename).name
    if is_implementation(sys.modules.get(owner.__module__)) and asking in (PROOF, "dis.py"):
        return "the proof looks into the code under test; it may only call it"
    return ""
