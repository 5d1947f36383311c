"""Copies of the project to measure on, so that nobody's file is touched."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dojo.kata import kata_toml
from dojo.kata.kata import Kata
from dojo.project import Project


@contextmanager
def copied(project: Project, name: str) -> Iterator[tuple[Project, Kata]]:
    """Yield a copy of the project that has one kata, planted with its default bugs."""
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as folder:
        copy = project.copied_to(Path(folder).resolve(), f"katas/{name}")
        kata = kata_toml.load(copy.katas / name)
        kata.botched.write_text(kata.planted_source(kata.default), encoding="utf-8")
        yield copy, kata


@contextmanager
def left_as_found(project: Project, kata: Kata) -> Iterator[None]:
    """Put the kata's files back after the block, and drop the copy's history.

    Commands are killed in the midst of their work: practice plants other bugs, and cosmic-ray
    leaves a mutant in the reference.
    """
    before = {path: path.read_bytes() for path in kata.folder.iterdir() if path.is_file()}
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)
        shutil.rmtree(project.state, ignore_errors=True)
