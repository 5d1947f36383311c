"""Draws requests: which code, which bugs, and what harmless changes stand beside them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from dojo.errors import DojoError
from dojo.history.reviews import Effect
from dojo.kata.bug import Bug, Kind
from dojo.kata.kata import Kata
from dojo.kata.planting import conflict, plant
from dojo.practice.review import renaming, rewriting, spelling
from dojo.practice.review.author import written
from dojo.practice.review.changes import Change
from dojo.practice.review.edits import Edit, apart, difference
from dojo.practice.review.equivalents import Equivalent, equivalents
from dojo.practice.review.pull_request import PullRequest, hunks
from dojo.practice.review.refactorings import Parsed, Proposal, Refactoring

REFACTORINGS: tuple[Refactoring, ...] = (
    renaming.renamings,
    rewriting.chains,
    rewriting.conditionals,
    rewriting.counters,
    rewriting.keywords,
    rewriting.mirrored,
    rewriting.ranges,
    rewriting.returns,
    rewriting.slices,
    rewriting.swapped,
    spelling.comments,
    spelling.docstrings,
    spelling.numbers,
    spelling.parentheses,
)

_MOST_LINES = 10  # of a bug's edit: more are no slip
_SIZES, _SIZE_WEIGHTS = (1, 2, 3, 4), (3, 4, 3, 2)
_TWO_BUGS = 0.15  # of the requests that are wrong
_CATALOGUED = 0.7  # of the bugs, where there are fresh ones
_FAR = 0.2  # how likely a change far from the first is, beside one in the same function


_Thing = TypeVar("_Thing")


@dataclass(frozen=True)
class Planting:
    """A bug as an edit of whole lines."""

    bug: Bug
    edit: Edit


class Material:
    """What requests to one kata's code can be made of."""

    def __init__(self, kata: Kata) -> None:
        """Take a kata; all else waits until it is asked for."""
        self.kata = kata

    @cached_property
    def text(self) -> Parsed:
        """Return the reference, parsed."""
        return Parsed.of(self.kata.correct_source)

    @cached_property
    def catalogued(self) -> list[Planting]:
        """Return the catalogue's bugs that reading can find."""
        return list(self._plantings(self.kata.bugs))

    @cached_property
    def fresh(self) -> list[Planting]:
        """Return those that operators made."""
        return list(self._plantings(self.kata.fresh))

    @cached_property
    def equivalents(self) -> list[Equivalent]:
        """Return what is proved to be equivalent."""
        return list(equivalents(self.kata, self.text.lines, self.text.outline))

    @cached_property
    def refactorings(self) -> list[list[Proposal]]:
        """Return what can be written in another way, a list a sort."""
        return [found for one in REFACTORINGS if (found := list(one(self.text)))]

    def _plantings(self, bugs: Sequence[Bug]) -> Iterator[Planting]:
        source = self.text.lines
        for bug in bugs:
            other = plant(self.kata.correct_source, [bug]).split("\n")
            edit = difference(source, other)
            if edit is None or bug.gpu or not _shows(source[edit.start : edit.stop], edit.lines):
                continue
            if max(edit.stop - edit.start, len(edit.lines)) <= _MOST_LINES:
                yield Planting(bug, edit)


def _shows(before: Sequence[str], after: Sequence[str]) -> bool:
    """Say whether lines differ in what a person sees."""

    def seen(lines: Sequence[str]) -> list[str]:
        kept = ("".join(c for c in line if c.isprintable()).rstrip() for line in lines)
        return [line for line in kept if line]

    return seen(before) != seen(after)


def draw_request(
    material: Material, rng: random.Random, kind: Kind | None = None, wrong: bool | None = None
) -> PullRequest:
    """Draw a request to a kata's code; its first bug, coming or going, is of that kind if any is.

    Half of all requests bring in a bug, unless it is said whether this one is `wrong`.
    """
    if wrong is None:
        wrong = rng.random() < 0.5
    return _Drawing(material, rng, kind).request(wrong)


class _Drawing:
    """A request as it comes to be."""

    def __init__(self, material: Material, rng: random.Random, kind: Kind | None) -> None:
        self._material = material
        self._rng = rng
        self._kind = kind
        self._changes: list[Change] = []
        self._equivalent: Equivalent | None = None

    def request(self, wrong: bool) -> PullRequest:
        kata = self._material.kata
        # Before all else, and in the same way for both: how many there are tells nothing.
        (size,) = self._rng.choices(_SIZES, _SIZE_WEIGHTS)
        if wrong:
            self._add_bug(Effect.BREAKS)
            two = self._rng.random() < _TWO_BUGS
            if size > 1 and two and not any(one.is_fresh for one in self._changes):
                self._add_bug(Effect.BREAKS)
        elif self._rng.random() < 0.5:
            self._add_bug(Effect.MENDS)
        for _ in range(4 * size):
            if len(self._changes) >= size:
                break
            share = self._rng.random()
            if share < 0.2:
                self._add_bug(Effect.MENDS)
            elif share < 0.5:
                self._add_equivalent()
            else:
                self._add_refactoring()
        if not self._changes:
            self._add_refactoring()
        if not self._changes:
            self._add_bug(Effect.MENDS)
        if not self._changes or wrong is not (Effect.BREAKS in self._effects()):
            raise DojoError(f"{kata.name} has nothing that a request could be made of")
        changes = tuple(sorted(self._changes, key=lambda one: (one.edit.start, one.edit.stop)))
        lines = [line for hunk in hunks(kata, changes) for line in hunk.lines]
        counts = (sum(one.sign == "-" for one in lines), sum(one.sign == "+" for one in lines))
        title, description = written(kata, changes, counts, self._rng)
        return PullRequest(kata, title, description, changes)

    def _add_bug(self, effect: Effect) -> None:
        """Add a bug; no two that behave alike, or that could hide one another."""
        planted = [change.bug for change in self._changes if change.bug]
        if effect is Effect.MENDS and Effect.MENDS in self._effects():
            return
        pools = [
            [one for one in pool if self._goes_with(one, planted)]
            for pool in self._pools(second=effect in self._effects())
        ]
        if self._kind is not None and not planted:
            of_kind = [[one for one in pool if one.bug.kind is self._kind] for pool in pools]
            pools = [*of_kind, *pools]
        fitting = next(filter(None, pools), None)
        if fitting:
            found = self._near(fitting, [one.edit for one in fitting])
            going = effect is Effect.MENDS
            self._changes.append(Change(found.edit, effect, old_is_edited=going, bug=found.bug))

    def _pools(self, *, second: bool) -> list[list[Planting]]:
        """Return bugs to choose from, the first pool that has one before the next.

        A second bug is catalogued, for these are proved in pairs.
        """
        material = self._material
        if second:
            return [material.catalogued]
        if self._rng.random() < _CATALOGUED:
            return [material.catalogued, material.fresh]
        return [material.fresh, material.catalogued]

    def _goes_with(self, planting: Planting, planted: Sequence[Bug]) -> bool:
        bugs = [*planted, planting.bug]
        ids = {bug.id for bug in planted}
        likes = {other for bug in planted for other in (*bug.apart, bug.over_fix_of)}
        mine = {*planting.bug.apart, planting.bug.over_fix_of}
        return (
            self._fits(planting.edit)
            and conflict(self._material.kata.correct_source, bugs) is None
            and planting.bug.id not in likes
            and not mine & ids
            and (self._equivalent is None or self._far(self._equivalent, planting.edit))
        )

    def _add_equivalent(self) -> None:
        """Add one at most: two may each be harmless while the other is not made.

        So may a bug beside it, so they never share a function.
        """
        if self._equivalent is not None:
            return
        bugs = [change.edit for change in self._changes if change.bug]
        fitting = [
            one
            for one in self._material.equivalents
            if self._fits(one.edit) and all(self._far(one, edit) for edit in bugs)
        ]
        if fitting:
            found = self._near(fitting, [one.edit for one in fitting])
            self._equivalent = found
            self._add_harmless(found.edit, found.reason)

    def _far(self, equivalent: Equivalent, edit: Edit) -> bool:
        """Say whether an equivalent and a bug stand in functions that differ."""
        return bool(equivalent.function) and not self._shares_function(equivalent.edit, edit)

    def _add_refactoring(self) -> None:
        sorts = [
            fitting
            for proposals in self._material.refactorings
            if (fitting := [one for one in proposals if self._fits(one.edit)])
        ]
        if sorts:
            proposals = self._rng.choice(sorts)
            found = self._near(proposals, [one.edit for one in proposals])
            if found.holds(self._material.text):
                self._add_harmless(found.edit, found.reason)

    def _add_harmless(self, edit: Edit, reason: str) -> None:
        back = self._rng.random() < 0.5
        self._changes.append(Change(edit, Effect.HARMLESS, old_is_edited=back, reason=reason))

    def _effects(self) -> set[Effect]:
        return {change.effect for change in self._changes}

    def _fits(self, edit: Edit) -> bool:
        source = self._material.text.lines
        return all(apart(source, edit, change.edit) for change in self._changes)

    def _shares_function(self, one: Edit, other: Edit) -> bool:
        outline = self._material.text.outline
        return outline.outermost(one.start) == outline.outermost(other.start)

    def _near(self, things: Sequence[_Thing], edits: Sequence[Edit]) -> _Thing:
        """Draw one; beside an earlier change rather those in its function, as in a real diff."""
        if not self._changes:
            return self._rng.choice(things)
        first = self._changes[0].edit
        weights = [1.0 if self._shares_function(first, edit) else _FAR for edit in edits]
        return self._rng.choices(things, weights)[0]
