"""Writes what a class is given: botched katas that run, and no answers."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dojo.classroom.answerless import write_answerless
from dojo.errors import DojoError
from dojo.kata.kata import Kata
from dojo.project import Project

# With them the commands that need no answers work, as in a whole checkout.
_SCRIPTS = ("kata", "setup", "check", "debug", "export", "probe", "run", "show", "undo", "watch")
_FILES = (
    ".gitignore",
    "LICENSE",
    "scripts/constraints.txt",
    "scripts/environment.py",
    *(f"scripts/{name}.sh" for name in _SCRIPTS),
)


def write_handout(
    project: Project,
    planted: Mapping[Kata, Sequence[str]],
    target: Path,
    pages: Mapping[str, str],
) -> None:
    """Write a folder, or an archive if it is called so, of these katas with their bugs planted.

    `pages` are texts for learners, by their path in it. It is there whole, or not at all.
    """
    archive = target.suffix == ".zip"
    if target.exists() and (archive or not target.is_dir() or any(target.iterdir())):
        raise DojoError(f"{target} exists; name another, or take it away first")
    parent = target.resolve().parent
    if not parent.is_dir():
        raise DojoError(f"the folder {target.parent} does not exist; make it first")
    try:
        with tempfile.TemporaryDirectory(prefix=".handout-", dir=parent) as scratch:
            folder = Path(scratch) / target.stem if archive else Path(scratch) / target.name
            _write(project, planted, folder, pages)
            if archive:
                made = shutil.make_archive(f"{folder}.made", "zip", scratch, folder.name)
                Path(made).replace(target)
            else:
                folder.replace(target)  # which may be there, if it is empty
    except OSError as error:
        raise DojoError(f"{target} cannot be written: {error.strerror}") from None


def _write(
    project: Project,
    planted: Mapping[Kata, Sequence[str]],
    folder: Path,
    pages: Mapping[str, str],
) -> None:
    copy = write_answerless(project, planted, folder)
    for kata, bug_ids in planted.items():
        text = kata.planted_source(bug_ids)
        (copy.katas / kata.name / "botched.py").write_text(text, encoding="utf-8")
    for name in _FILES:
        if (project.root / name).is_file():
            shutil.copy(project.root / name, folder / name)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
