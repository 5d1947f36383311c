"""Draws bugs of a kata that go together."""

import random
from collections.abc import Sequence

from dojo.errors import DojoError
from dojo.kata.bug import Bug, kept_apart
from dojo.kata.kata import Kata
from dojo.kata.planting import choose


def draw_bugs(
    kata: Kata, count: int, seed: int | None, bugs: Sequence[Bug] | None = None
) -> tuple[str, ...]:
    """Draw bugs that go together, from the catalogued ones unless others are given.

    A seed gives the same ones everywhere. No two fail the same tests, or progress would not show,
    and none are kept apart.
    """
    if count < 1:
        raise DojoError(f"--count must be at least 1, not {count}")
    if bugs is None:
        bugs = [bug for bug in kata.bugs if not bug.gpu]
    rng = random.Random() if seed is None else random.Random(f"{kata.name}:{seed}")
    for _ in range(100):
        chosen = choose(kata.correct_source, bugs, count, rng)
        if chosen is None:
            break
        if kept_apart(chosen):
            continue
        if len({frozenset(bug.killed_by) for bug in chosen}) == count:
            return tuple(bug.id for bug in chosen)
    raise DojoError(f"{kata.name} has no {count} bugs that can be planted together")
