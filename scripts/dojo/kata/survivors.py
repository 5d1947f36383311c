"""Mutants that no test here can catch, and why: `mutants.toml` beside the kata.

An entry names a change by the function it is made in and the lines it changes, each stripped. Where
these lines stand several times in the function, `occurrence` counts them from 1. An `after` of `*`
stands for whatever the lines become, as where they set how a kernel is launched.
"""

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from dojo.errors import CatalogueError
from dojo.kata.kata import Kata

ANYTHING = "*"


class Kind(StrEnum):
    """Why no test here catches a mutant."""

    EQUIVALENT = "equivalent"  # no input tells it from the reference
    GPU = "gpu"  # it shows on a GPU, or in speed alone


class LikeMutant(Protocol):
    """What an entry needs to know of a mutant to say whether it means it."""

    @property
    def function(self) -> str:
        """Return the function that it is in."""

    @property
    def before(self) -> str:
        """Return the lines that it changes, each stripped."""

    @property
    def after(self) -> str:
        """Return what they become."""

    @property
    def occurrence(self) -> int:
        """Return which of their equals in the function they are, from 1."""


@dataclass(frozen=True)
class Survivor:
    """A mutant that survives, as `mutants.toml` lists it."""

    kind: Kind
    reason: str
    before: str
    after: str
    function: str = ""  # dotted for a method; empty for what stands outside all functions
    occurrence: int | None = None

    def excuses(self, mutant: LikeMutant) -> bool:
        """Say whether a mutant is the one that is meant."""
        return (
            self.function == mutant.function
            and bare(self.before) == bare(mutant.before)
            and bare(self.after) in (ANYTHING, bare(mutant.after))
            and self.occurrence in (None, mutant.occurrence)
        )

    def __str__(self) -> str:
        """Return what finds the entry in its file."""
        return f"{self.function or 'module'}: {self.before!r} to {self.after!r}"


def bare(lines: str) -> str:
    """Leave out blanks, which operators set in ways of their own."""
    return "".join(lines.split())


def read_survivors(kata: Kata) -> tuple[Survivor, ...]:
    """Return the entries, or raise `CatalogueError` for a malformed file."""
    path = kata.folder / "mutants.toml"
    if not path.is_file():
        return ()
    try:
        groups = tomllib.loads(path.read_text(encoding="utf-8"))["survivors"]
        return tuple(
            Survivor(Kind(group["kind"]), " ".join(group["reason"].split()), **entry)
            for group in groups
            for entry in group["mutants"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CatalogueError(f"{path}: {type(error).__name__}: {error}") from None
