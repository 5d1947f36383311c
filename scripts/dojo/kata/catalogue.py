"""Finds katas by number, name or folder."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from dojo.errors import CatalogueError, DojoError, typed
from dojo.kata.kata import Kata
from dojo.kata.kata_toml import load
from dojo.project import Project

# A number that gives its place, and a word.
NAME = re.compile(r"\d\d_[a-z][a-z0-9_]*")


def kata_folders(project: Project) -> list[Path]:
    """Return the folders under `katas/` that hold a `kata.toml`, in order."""
    return sorted(path.parent for path in project.katas.glob("*/kata.toml"))


def load_all(project: Project) -> list[Kata]:
    """Return every kata in order, or raise `CatalogueError` for the first malformed one."""
    folders = kata_folders(project)
    for folder in folders:
        if problem := misnamed(folder, folders):
            raise CatalogueError(problem)
    return [load(folder) for folder in folders]


def misnamed(folder: Path, folders: Sequence[Path]) -> str | None:
    """Return what is wrong with a folder's name beside those of the others, if something is."""
    if not NAME.fullmatch(folder.name):
        return f"{folder}: a kata's folder is called like 60_alibi"
    if other := taken_by(folder.name, folders):
        return f"{folder}: {other.name} has the same number or the same word; rename one"
    return None


def finished(project: Project) -> list[Kata]:
    """Return every kata but the drafts, or raise as `load_all` does."""
    return [kata for kata in load_all(project) if not kata.draft]


def taken_by(name: str, folders: Sequence[Path]) -> Path | None:
    """Return another folder that goes by the number or the word of this name, if there is one."""
    parts = set(name.split("_", 1))
    others = (folder for folder in folders if folder.name != name)
    return next((other for other in others if parts & set(other.name.split("_", 1))), None)


def named(project: Project, names: Sequence[str]) -> list[Kata]:
    """Return the katas of these names, or every kata if there are none."""
    return [find(project, name) for name in names] if names else load_all(project)


def find(project: Project, name: str) -> Kata:
    """Return the kata called `03`, `softmax` or `03_softmax`, or raise with the nearest names."""
    folders = kata_folders(project)
    wanted = name.rstrip("/").removeprefix("katas/")
    found = [folder for folder in folders if wanted in _goes_by(folder)]
    if len(found) > 1:
        raise DojoError(f"{name!r} is the name of {' and of '.join(f.name for f in found)}")
    if found:
        return load(found[0])
    names = [folder.name for folder in folders]
    words = {name.partition("_")[2]: name for name in names}
    close = difflib.get_close_matches(wanted, [*names, *words], n=3, cutoff=0.5)
    close += [n for n in names if wanted and wanted in n]
    suggestions = dict.fromkeys(words.get(match, match) for match in close)
    hint = f"did you mean {' or '.join(suggestions)}? " if suggestions else ""
    raise DojoError(f"no kata is called {name!r}; {hint}{typed('list')} shows them all")


def _goes_by(folder: Path) -> set[str]:
    number, _, word = folder.name.partition("_")
    return {folder.name, word, number, number.lstrip("0")}
