"""Which bugs are planted together to see that none keeps another's tests from failing."""

import random
from collections.abc import Sequence
from itertools import combinations

from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.kata.planting import choose, conflict

LARGER_SETS = 10


def pairs(kata: Kata, bugs: Sequence[Bug]) -> list[tuple[Bug, ...]]:
    """Return every two bugs that go together."""
    return [pair for pair in combinations(bugs, 2) if not conflict(kata.correct_source, pair)]


def larger_sets(kata: Kata, bugs: Sequence[Bug]) -> list[tuple[Bug, ...]]:
    """Draw different sets of three bugs or more that go together; always the same ones."""
    rng = random.Random(kata.name)
    found: dict[frozenset[str], tuple[Bug, ...]] = {}
    for _ in range(10 * LARGER_SETS):
        chosen = choose(kata.correct_source, bugs, rng.randint(3, max(3, len(bugs) // 2)), rng)
        if chosen and len(found) < LARGER_SETS:
            found[frozenset(bug.id for bug in chosen)] = chosen
    return list(found.values())
