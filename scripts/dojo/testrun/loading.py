"""Loads an implementation from a file, always from its present text."""

import importlib.util
import linecache
import re
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, ModuleType, TracebackType

from dojo.errors import typed


class _SourceLoader(SourceFileLoader):
    """Runs the text it is given, never a bytecode cache.

    The cache goes by size and whole second, so it would run the old code after an edit that keeps
    the size.
    """

    def __init__(self, name: str, path: Path, source: bytes) -> None:
        super().__init__(name, str(path))
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self._source, self.get_filename(fullname))
        return code


def load_module(path: Path, name: str, source: bytes) -> ModuleType:
    """Run the text of the file at `path` as a module; what it raises passes through."""
    linecache.checkcache(str(path))
    module_name = re.sub(r"\W", "_", name)
    spec = importlib.util.spec_from_file_location(
        module_name, path, loader=_SourceLoader(module_name, path, source)
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before exec: a dataclass with postponed annotations looks itself up in sys.modules.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def is_of_implementation(frame: FrameType) -> bool:
    """Say whether a frame runs code of a file that was loaded here."""
    return isinstance(frame.f_globals.get("__loader__"), _SourceLoader)


def is_implementation(module: ModuleType | None) -> bool:
    """Say whether a module was loaded here."""
    return isinstance(getattr(module, "__loader__", None), _SourceLoader)


def entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    """Yield the entries of a traceback, the innermost last."""
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def place_of(error: BaseException) -> str:
    """Return where in the implementation an error came up, such as " in backward, line 41".

    It is the innermost frame there; empty where none is, as in a test's own comparison.
    """
    place = ""
    for entry in entries(error.__traceback__):
        if is_of_implementation(entry.tb_frame):
            place = _place(entry.tb_frame, entry.tb_lineno)
    return place


def place_of_call() -> str:
    """Return where in the implementation the code runs that has called, as `place_of` does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_of_implementation(frame):
        frame = frame.f_back
    return "" if frame is None else _place(frame, frame.f_lineno)


def _place(frame: FrameType, line: int) -> str:
    name = frame.f_code.co_name
    # A comprehension, a lambda or the module has no name of its own.
    return f" in line {line}" if name.startswith("<") else f" in {name}, line {line}"


def explain_load_error(error: BaseException, path: Path) -> str:
    """Return one line that says why the file did not load, and where."""
    name = path.name
    if isinstance(error, FileNotFoundError) and not path.exists():
        return f"{name} is missing: {typed('reset')} puts it back"
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{name}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    if not line and isinstance(error, OSError) and error.filename == str(path):
        return f"{name} cannot be read: {error.strerror}"
    place = f"{name}, line {line}" if line else name
    return f"{place}: {type(error).__name__}: {error}"
