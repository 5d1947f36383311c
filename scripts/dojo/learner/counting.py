"""Counts the planted bugs that are gone from a learner's text, each judged by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.kata.mending import Mending
from dojo.kata.planting import plant
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Text
from dojo.testrun.results import Verdict


@dataclass(frozen=True)
class Count:
    """Which planted bugs are gone, by id, in the order in which they were planted."""

    gone: tuple[str, ...]
    at_least: bool = False  # more may be gone: the learner rewrote the place of one that is not


# Runs the tests on a text, first those that the bug fails; none if nothing came of it.
Passes = Callable[[str, Bug], bool | None]


def count_gone(reference: str, planted: Sequence[Bug], text: str, passes: Passes) -> Count | None:
    """Judge each planted bug by itself; return None where that takes a run of which nothing came.

    Runs that say what is known already are spared: the reference passes, and with one bug alone
    it fails.
    """
    mending = Mending(reference, planted, text)
    known: dict[str, bool | None] = {plant(reference, [bug]): False for bug in planted}
    known[reference] = True
    gone: set[str] = set()
    for _ in planted:
        found = set()
        for bug in planted:
            for candidate in mending.texts(bug, gone) if bug.id not in gone else ():
                if candidate not in known:
                    known[candidate] = passes(candidate, bug)
                if known[candidate] is None:
                    return None
                if known[candidate]:
                    found.add(bug.id)
                    break
        if not found:
            break
        gone |= found  # and again: lines of one that is mended elsewhere may stay now
    left = [bug for bug in planted if bug.id not in gone]
    return Count(
        tuple(bug.id for bug in planted if bug.id in gone),
        at_least=any(map(mending.touched, left)),
    )


def by_runs(kata: Kata, runner: Runner, seed: int) -> Passes:
    """Return what runs the kata's tests; nothing comes of a run that is cancelled."""

    def passes(text: str, bug: Bug) -> bool | None:
        result = runner.run(kata, Text(text), seed, first_failure=True, first=bug.killed_by)
        return None if result.verdict is Verdict.CANCELLED else result.verdict is Verdict.PASSED

    return passes


def without_runs(_: str, __: Bug) -> None:
    """Have nothing run: only what is known already is counted."""
