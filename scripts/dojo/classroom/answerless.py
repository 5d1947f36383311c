"""Writes an answerless checkout: katas with all that their tests need, and nothing that they ask.

Neither references nor bugs, solutions, mutants or history are in it, so that whoever has it, or
runs in it, finds no answer there.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from dojo.kata.kata import Kata
from dojo.project import Project


def write_answerless(project: Project, katas: Iterable[Kata], folder: Path) -> Project:
    """Write a checkout of these katas without their answers into the folder, and return it.

    The package is whole, for it holds no answers, and each command works as far as it can. There is
    no `botched.py`: what is planted is for the caller to say.
    """
    copy = project.copied_to(folder)
    _copy_fixtures(project.fixtures, copy.fixtures)
    for kata in katas:
        own = copy.katas / kata.name
        own.mkdir(parents=True)
        for path in (kata.brief, kata.tests, kata.healthy_file):
            if path.is_file():
                shutil.copy(path, own / path.name)
        (own / "kata.toml").write_text(_facts(kata), encoding="utf-8")
    return copy


def _copy_fixtures(fixtures: Path, folder: Path) -> None:
    """Copy what tests read; what makes it anew needs libraries that a learner lacks."""
    if fixtures.is_dir():
        shutil.copytree(fixtures, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))


def _facts(kata: Kata) -> str:
    """Return the kata's `kata.toml` without its bugs."""
    title = json.dumps(kata.title, ensure_ascii=False)  # which is a string of TOML too
    return (
        f'title = {title}\ntopic = "{kata.topic}"\nlevel = "{kata.level}"\n'
        f"minutes = {kata.minutes}\ndefault = []\n"
    )
