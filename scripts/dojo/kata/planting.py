"""Plants bugs: pure functions from the reference's text and bugs to botched text."""

import itertools
import random
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Edit(Protocol):
    """What planting needs to know of a bug."""

    @property
    def id(self) -> str:
        """Return the name of the edit."""

    @property
    def find(self) -> str:
        """Return the text to take out, which stands exactly once in the source."""

    @property
    def replace(self) -> str:
        """Return the text to put in its place."""


EditT = TypeVar("EditT", bound=Edit)


def span(source: str, edit: Edit) -> tuple[int, int]:
    """Return the first and last line (from 1) that the edit touches."""
    start = source.index(edit.find)
    first = source.count("\n", 0, start) + 1
    return first, first + edit.find.rstrip("\n").count("\n")


def conflict(source: str, edits: Sequence[Edit]) -> tuple[str, str] | None:
    """Return the ids of two edits that touch a common line, or None."""
    spans = sorted((*span(source, edit), edit.id) for edit in edits)
    for (_, last, one), (first, _, other) in itertools.pairwise(spans):
        if first <= last:
            return one, other
    return None


def plant(source: str, edits: Sequence[Edit]) -> str:
    """Return the source with every edit made; the edits touch no common line."""
    for edit in sorted(edits, key=lambda edit: source.index(edit.find), reverse=True):
        start = source.index(edit.find)
        source = source[:start] + edit.replace + source[start + len(edit.find) :]
    return source


def choose(
    source: str, edits: Sequence[EditT], count: int, rng: random.Random
) -> tuple[EditT, ...] | None:
    """Draw `count` edits that go together, in the order given, or None if no draw has so many."""
    # A greedy draw can block itself; the edits are few, so drawing again is enough.
    for _ in range(100):
        chosen: list[EditT] = []
        for edit in rng.sample(edits, len(edits)):
            if len(chosen) < count and not conflict(source, [*chosen, edit]):
                chosen.append(edit)
        if len(chosen) == count:
            return tuple(sorted(chosen, key=edits.index))
    return None
