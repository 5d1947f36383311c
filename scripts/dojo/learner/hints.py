"""Which hint comes next, and what it says."""

from collections import Counter
from collections.abc import Collection, Sequence

from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.testrun.results import check_functions


def hints_of(kata: Kata, bug: Bug) -> list[str]:
    """Return the hints on a bug, in order: of a system, the first opens a check that it fails."""
    check = telling_check(kata, bug)
    opening = [f"the check {check} fails, and is open from now on"] if check else []
    return [*opening, *bug.hints]


def telling_check(kata: Kata, bug: Bug) -> str | None:
    """Return the check of a system that says most of a bug: fewest other bugs fail it."""
    if not kata.is_system:
        return None
    checks = check_functions(kata.tests)
    failed_by = Counter(name for other in kata.bugs for name in other.killed_by)
    own = [name for name in bug.killed_by if name in checks]
    return min(own, key=failed_by.__getitem__, default=None)


def hint_line(kata: Kata, planted: Sequence[Bug], bug: Bug, level: int) -> str:
    """Return a hint with its number, and that of its bug where several are planted."""
    hints = hints_of(kata, bug)
    about = f"bug {planted.index(bug) + 1} of {len(planted)}" if len(planted) > 1 else ""
    number, total = level + 1, len(hints)
    if number == total:
        about = f"the last on {about}" if about else "the last"
    return f"Hint {number} of {total}{', ' if about else ''}{about}: {hints[level]}"


def next_hint(
    kata: Kata, planted: Sequence[Bug], gone: Sequence[str], given: Collection[tuple[str, int]]
) -> tuple[Bug, int] | None:
    """Return the bug and the number (from 0) of the hint to give next, or None if all are given.

    Hints go round: the first of every bug, then the second of every bug; never one of a bug that
    is gone.
    """
    totals = {bug.id: len(hints_of(kata, bug)) for bug in planted}
    for level in range(max(totals.values(), default=0)):
        for bug in planted:
            if level < totals[bug.id] and bug.id not in gone and (bug.id, level) not in given:
                return bug, level
    return None
