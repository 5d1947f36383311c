"""Sees that `mutants.toml` says what is true of a kata's mutants."""

from collections import Counter
from collections.abc import Iterable, Sequence

from dojo.kata.kata import Kata
from dojo.kata.survivors import ANYTHING, Survivor
from dojo.verification.mutation.mutants import Mutant, meaning


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
