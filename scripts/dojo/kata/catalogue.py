"""Finds katas by number, name or folder."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from dojo.errors import DojoError, command
from dojo.kata.kata import Kata
from dojo.kata.kata_toml import load
from dojo.project import Project


def kata_folders(project: Project) -> list[Path]:
    """Return the folders under `katas/` that hold a `kata.toml`, in order."""
    return sorted(path.parent for path in project.katas.glob("*/kata.toml"))


def load_all(project: Project) -> list[Kata]:
    """Return every kata in order, or raise `CatalogueError` for the first malformed one."""
    return [load(folder) for folder in kata_folders(project)]


def named(project: Project, names: Sequence[str]) -> list[Kata]:
    """Return the katas of these names, or every kata if there are none."""
    return [find(project, name) for name in names] if names else load_all(project)


def find(project: Project, name: str) -> Kata:
    """Return the kata called `03`, `softmax` or `03_softmax`, or raise with the nearest names."""
    folders = kata_folders(project)
    wanted = name.rstrip("/").removeprefix("katas/")
    for folder in folders:
        number, _, word = folder.name.partition("_")
        if wanted in (folder.name, word, number) or wanted == number.lstrip("0"):
            return load(folder)
    names = [folder.name for folder in folders]
    words = {name.partition("_")[2]: name for name in names}
    close = difflib.get_close_matches(wanted, [*names, *words], n=3, cutoff=0.5)
    close += [n for n in names if wanted and wanted in n]
    suggestions = dict.fromkeys(words.get(match, match) for match in close)
    hint = f"did you mean {' or '.join(suggestions)}? " if suggestions else ""
    raise DojoError(f"no kata is called {name!r}; {hint}{command('list')} shows them all")
