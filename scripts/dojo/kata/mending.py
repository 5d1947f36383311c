"""Mends planted bugs in a text that a learner has changed, so that each can be judged by itself.

Bugs share tests, so the failing tests of a text cannot say which of its bugs are left. A text in
which every other planted bug is mended can: its tests pass if this one is gone, in whatever way.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from dojo.kata.bug import Bug
from dojo.kata.planting import plant


@dataclass(frozen=True)
class _Change:
    """Lines of the planted text, from `start` up to `end`, and those that take their place."""

    start: int
    end: int
    lines: tuple[str, ...]

    def overlaps(self, other: "_Change") -> bool:
        """Say whether only one of both can be made."""
        return self.start < other.end and other.start < self.end

    def concerns(self, other: "_Change") -> bool:
        """Say whether they overlap, or this one puts lines in just before or after the other's."""
        borders = self.start == self.end and self.start in (other.start, other.end)
        return borders or self.overlaps(other)


class Mending:
    """A learner's text beside what was planted for them."""

    def __init__(self, reference: str, bugs: Sequence[Bug], text: str) -> None:
        """Compare the texts, line by line."""
        self._planted = plant(reference, bugs).splitlines(keepends=True)
        self._mends = _mends(reference, bugs)
        lines = text.replace("\r\n", "\n").splitlines(keepends=True)
        self._learners = _changes(self._planted, lines)

    def touched(self, bug: Bug) -> bool:
        """Say whether the learner changed the lines of a bug."""
        return bool(self._overlapping(self._mends[bug.id]))

    def texts(self, bug: Bug, gone: Collection[str]) -> list[str]:
        """Return texts to judge a bug by: if the tests pass with one, the bug is gone.

        In the first, what the learner made of other bugs' lines gives way to the reference; in
        others it stays, for it may be a part of this bug's fix. Where lines of theirs and of the
        reference go in at one place, either may come first.
        Bugs of the ids in `gone` are left as they are where the learner did not touch their
        lines: they are mended elsewhere.
        """
        orders = itertools.product((False, True), (True, False))
        texts = (self._composed(bug, gone, keeps_all, first) for keeps_all, first in orders)
        return list(dict.fromkeys(texts))

    def _composed(self, bug: Bug, gone: Collection[str], keeps_all: bool, mends_first: bool) -> str:
        """Return the learner's text with every other bug mended where that can be."""
        own = self._concerning(self._mends[bug.id])
        kept, mends = self._learners, []
        for other, mend in self._mends.items():
            mended_elsewhere = other in gone and not self._overlapping(mend)
            if other == bug.id or mended_elsewhere or mend in self._learners:
                continue
            concerning = self._concerning(mend)
            given_up = set() if keeps_all else concerning - own
            if not self._overlapping(mend) - given_up:
                kept = [change for change in kept if change not in given_up]
                mends.append(mend)
        changes = [*mends, *kept] if mends_first else [*kept, *mends]
        return _applied(self._planted, changes)

    def _concerning(self, mend: _Change) -> set[_Change]:
        """Return what the learner did about a bug's lines, or just beside them.

        What mends another bug as the reference does is about that one alone.
        """
        others = set(self._mends.values()) - {mend}
        return {change for change in self._learners if change.concerns(mend)} - others

    def _overlapping(self, mend: _Change) -> set[_Change]:
        return {change for change in self._learners if change.overlaps(mend)}


def _mends(reference: str, bugs: Sequence[Bug]) -> dict[str, _Change]:
    """Return what takes each bug out of a text in which all are planted, by its id."""
    correct = reference.splitlines(keepends=True)
    mends: dict[str, _Change] = {}
    shift = 0  # of the lines that follow, by the bugs before them
    for bug in sorted(bugs, key=lambda bug: reference.index(bug.find)):
        alone = plant(reference, [bug]).splitlines(keepends=True)
        start, end = _differing(alone, correct)
        grown = len(alone) - len(correct)
        lines = tuple(correct[start : end - grown])
        mends[bug.id] = _Change(start + shift, end + shift, lines)
        shift += grown
    return mends


def _differing(lines: Sequence[str], others: Sequence[str]) -> tuple[int, int]:
    """Return from which line on, and up to which, the first differ from the others."""
    shorter = min(len(lines), len(others))
    start = next((i for i in range(shorter) if lines[i] != others[i]), shorter)
    most = shorter - start
    tail = next((i for i in range(most) if lines[-1 - i] != others[-1 - i]), most)
    return start, len(lines) - tail


def _changes(old: Sequence[str], new: Sequence[str]) -> list[_Change]:
    """Return the changes from one text to another, each as small as lines go."""
    changes = []
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for tag, start, end, other, other_end in matcher.get_opcodes():
        if tag == "replace" and end - start == other_end - other:
            changes += [
                _Change(start + i, start + i + 1, (new[other + i],)) for i in range(end - start)
            ]
        elif tag != "equal":
            changes.append(_Change(start, end, tuple(new[other:other_end])))
    return changes


def _applied(lines: Sequence[str], changes: Collection[_Change]) -> str:
    """Return the text after changes that do not overlap; those at one place in their order."""
    parts: list[str] = []
    done = 0
    for change in sorted(changes, key=lambda change: (change.start, change.end)):
        parts += [*lines[done : change.start], *change.lines]
        done = change.end
    return "".join([*parts, *lines[done:]])
