"""Which bugs are planted together to see that none keeps another's tests from failing."""

import random
from collections.abc import Sequence
from itertools import combinations

from dojo.kata.bug import Bug, kept_apart
from dojo.kata.kata import Kata
from dojo.kata.planting import choose, conflict

LARGER_SETS, SMALLEST = 10, 3
SAMPLE = 20


def pairs(kata: Kata, bugs: Sequence[Bug]) -> list[tuple[Bug, ...]]:
    """Return every two bugs that go together, but for those that are kept apart."""
    return [
        pair
        for pair in combinations(bugs, 2)
        if not conflict(kata.correct_source, pair) and not kept_apart(pair)
    ]


def some_pairs(kata: Kata, bugs: Sequence[Bug]) -> list[tuple[Bug, ...]]:
    """Draw a sample of these pairs; always the same one."""
    every = pairs(kata, bugs)
    return random.Random(kata.name).sample(every, min(len(every), SAMPLE))


def larger_sets(kata: Kata, bugs: Sequence[Bug]) -> list[tuple[Bug, ...]]:
    """Draw different sets of three bugs or more that go together; always the same ones."""
    rng = random.Random(kata.name)
    found: dict[frozenset[str], tuple[Bug, ...]] = {}
    for _ in range(10 * LARGER_SETS):
        chosen = choose(
            kata.correct_source, bugs, rng.randint(SMALLEST, max(SMALLEST, len(bugs) // 2)), rng
        )
        together = _without_those_apart(chosen or ())
        if len(together) >= SMALLEST and len(found) < LARGER_SETS:
            found[frozenset(bug.id for bug in together)] = together
    return list(found.values())


def _without_those_apart(bugs: Sequence[Bug]) -> tuple[Bug, ...]:
    """Return the bugs but for those that are kept apart from one before them."""
    together: list[Bug] = []
    for bug in bugs:
        if not kept_apart([*together, bug]):
            together.append(bug)
    return tuple(together)
