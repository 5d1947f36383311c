"""What judges the code: files that are read before a run, and put back if the run changed them."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dojo.errors import DojoError
from dojo.files import write_atomically


def files_of_kata(folder: Path, tests: Path) -> list[Path]:
    """Return the files of a kata that its verdict rests on; some of them need not exist."""
    return [tests, *(folder / name for name in ("reference.py", "kata.toml", "healthy.json"))]


def files_of_project(root: Path) -> list[Path]:
    """Return the files that every kata's verdict rests on."""
    package = sorted((root / "scripts" / "dojo").rglob("*.py"))
    return [root / "conftest.py", root / "pyproject.toml", *(root / "fixtures").glob("*"), *package]


class Originals:
    """The text of files as it was before a run."""

    def __init__(self, aside: Path) -> None:
        """Begin with no files; what a run makes of one goes into the folder `aside`."""
        self._aside = aside
        self._kept: dict[Path, tuple[_Stamp, bytes]] = {}

    def read(self, paths: Iterable[Path]) -> None:
        """Read these files, and no others; not again what is as it was when last read."""
        before, self._kept = self._kept, {}
        for path in paths:
            stamp = _stamp(path)
            known = before.get(path)
            if known and known[0] == stamp:
                self._kept[path] = known
            elif stamp and os.access(path, os.R_OK):
                self._kept[path] = stamp, path.read_bytes()

    def put_back(self) -> list[Path]:
        """Put back what is not as it was read, and return which files that are.

        The changed text is kept: it may be a person's, saved in just that moment.
        """
        return [path for path in self._kept if self._is_put_back(path)]

    def _is_put_back(self, path: Path) -> bool:
        stamp, text = self._kept[path]
        if _stamp(path) == stamp:
            return False
        try:
            changed = path.read_bytes() if path.exists() else None
            if changed == text:
                return False
            if changed is not None:
                write_atomically(self._aside / path.name, changed)
            write_atomically(path, text)
        except OSError as error:
            raise DojoError(
                f"the run changed {path.name}, and it cannot be put back: {error.strerror}"
            ) from None
        return True

    def told(self, paths: Sequence[Path]) -> str:
        """Return what to say of files that were put back."""
        names = ", ".join(path.name for path in paths)
        it = "it was" if len(paths) == 1 else "they were"
        return f"the run changed {names}; {it} put back (the changed text: {self._aside})"


_Stamp = tuple[int, ...]


def _stamp(path: Path) -> _Stamp:
    """Return what differs once a file was written; nothing where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  # of hundreds at each save: `Path.stat` takes longer
    except OSError:
        return ()
    # No program can set the time of the last change of its state.
    return found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino
