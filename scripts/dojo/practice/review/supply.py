"""An endless supply of requests: to other code each time, and of the kinds of bug that are due."""

import random
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from dojo.errors import DojoError, typed
from dojo.history.history import History
from dojo.kata import catalogue, kata_toml
from dojo.kata.bug import Kind
from dojo.kata.kata import Kata, Topic
from dojo.practice import scheduler
from dojo.practice.review.drawing import Material, draw_request
from dojo.practice.review.pull_request import PullRequest
from dojo.project import Project

# How many katas are looked at for one that has a bug of the kind that is needed most: to read
# them all takes half a second, which nobody should wait for.
_LOOKED_AT = 4


def supply(
    project: Project,
    *,
    kata: Kata | None = None,
    topic: Topic | None = None,
    seed: int | None = None,
    kinds: Sequence[Kind] = (),
    without: Collection[str] = (),
) -> Iterator[PullRequest]:
    """Yield requests for ever, to one kata's code or to any of a topic, or raise `DojoError`.

    A seed gives the same ones everywhere. The first of the `kinds` are what requests are about as
    soon as there is code that has bugs of them. Katas of the names in `without` are left out.
    """
    rng = random.Random() if seed is None else random.Random(f"review:{seed}")
    there = [one for one in catalogue.kata_folders(project) if one.name not in without]
    deck = _Deck([kata.folder] if kata else there, None if kata else topic, rng, named=bool(kata))
    waiting = list(kinds)
    while True:
        found = deck.next(_LOOKED_AT if waiting else 1)
        ranks = [_rank(material, waiting) for material in found]
        chosen = found[ranks.index(min(ranks))]
        kind = waiting.pop(min(ranks)) if min(ranks) < len(waiting) else None
        waiting += [kind] if kind else []  # its turn comes again after all others
        deck.take(chosen)
        # Of its own, so that a request does not depend on what was drawn for the one before.
        yield draw_request(chosen, random.Random(rng.getrandbits(64)), kind)


def kinds_by_need(history: History) -> list[Kind]:
    """Order kinds of bug: those due, longest first; those never met; the rest, by their date."""
    due = scheduler.due_kinds(history.reviews.all())
    now = datetime.now(UTC)
    shuffled = random.sample(list(Kind), len(Kind))

    def need(kind: Kind) -> tuple[int, float]:
        if kind not in due:
            return 1, 0.0
        return (0 if due[kind] <= now else 2), due[kind].timestamp()

    return sorted(shuffled, key=need)


def under_way(history: History) -> set[str]:
    """Return the katas of a practice session that goes on: requests would show their answers."""
    session = history.sessions.unfinished()
    exercises = history.sessions.exercises(session.id) if session else []
    return {exercise.kata for exercise in exercises if exercise.ending is None}


def _material(folder: Path) -> Material:
    return Material(kata_toml.load(folder))


def _rank(material: Material, kinds: Sequence[Kind]) -> int:
    """Return the place of the first of the kinds that the catalogue has bugs of."""
    there = {bug.kind for bug in material.kata.bugs}
    return next((place for place, kind in enumerate(kinds) if kind in there), len(kinds))


class _Deck:
    """The katas in a random order, each read when its turn comes, and again from the start."""

    def __init__(
        self, folders: Sequence[Path], topic: Topic | None, rng: random.Random, *, named: bool
    ) -> None:
        self._folders = folders
        self._named = named
        self._topic = topic
        self._rng = rng
        self._cards: list[Path] = []
        self._material = cache(_material)

    def next(self, most: int) -> list[Material]:
        """Return the next katas that fit, so many at most and one at least."""
        if not any(map(self._fits, self._cards)):
            # Those that fit no more, having been passed over, need no second look.
            self._cards = self._rng.sample(self._folders, len(self._folders))
        found: list[Material] = []
        for folder in self._cards:
            if len(found) < most and self._fits(folder):
                found.append(self._material(folder))
        if not found:
            raise DojoError(
                f"no kata fits these wishes; {typed('list')} shows katas and their topics"
            )
        return found

    def take(self, material: Material) -> None:
        """Put a kata aside, until all others had their turn."""
        self._cards.remove(material.kata.folder)

    def _fits(self, folder: Path) -> bool:
        kata = self._material(folder).kata
        return self._named or (not kata.draft and self._topic in (None, kata.topic))
