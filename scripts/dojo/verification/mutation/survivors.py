"""Mutants that no test here can catch, and why: `mutants.toml` beside the kata.

An entry names a change by the function it is made in and the lines it changes, each stripped. Where
these lines stand several times in the function, `occurrence` counts them from 1. An `after` of `*`
stands for whatever the lines become, as where they set how a kernel is launched.
"""

import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dojo.errors import CatalogueError
from dojo.kata.kata import Kata
from dojo.verification.mutation.mutants import Mutant, meaning

ANYTHING = "*"


class Kind(StrEnum):
    """Why no test here catches a mutant."""

    EQUIVALENT = "equivalent"  # no input tells it from the reference
    GPU = "gpu"  # it shows on a GPU, or in speed alone


@dataclass(frozen=True)
class Survivor:
    """A mutant that survives, as `mutants.toml` lists it."""

    kind: Kind
    reason: str
    before: str
    after: str
    function: str = ""  # dotted for a method; empty for what stands outside all functions
    occurrence: int | None = None

    def excuses(self, mutant: Mutant) -> bool:
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


def problems(kata: Kata, entries: Sequence[Survivor], mutants: Iterable[Mutant]) -> list[str]:
    """Say which entries are stale, mean several mutants, or would excuse a catalogued bug."""
    catalogued = {meaning(kata.planted_source((bug.id,))): bug.id for bug in kata.bugs}
    meant: Counter[Survivor] = Counter()
    found = []
    for mutant in mutants:
        for entry in entries:
            if not entry.excuses(mutant):
                continue
            meant[entry] += 1
            bug = catalogued.get(meaning(mutant.source))
            if bug is not None:
                found.append(f"mutants.toml excuses the bug {bug}: {entry}")
    for entry in entries:
        if not meant[entry]:
            found.append(f"mutants.toml names a mutant that is none any more: {entry}")
        elif meant[entry] > 1 and entry.after != ANYTHING:
            found.append(f"mutants.toml means {meant[entry]} mutants, give occurrence: {entry}")
    return found
