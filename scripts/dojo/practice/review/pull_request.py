"""A pull request: two texts, the changes between them, and the lines that show these."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from dojo.history.reviews import Effect
from dojo.kata.kata import Kata
from dojo.practice.review.changes import Change
from dojo.practice.review.edits import edited
from dojo.practice.review.outline import Outline, outline_of

_WHOLE_FUNCTION = 40  # lines: a longer one is shown around its changes alone
_AROUND = 8  # lines before and after a change
_LEAST_AROUND = 3


@dataclass(frozen=True)
class Line:
    """One line of a diff."""

    sign: str  # " ", "-" or "+"
    text: str
    old: int | None  # its number on either side, from 1
    new: int | None
    change: int | None = None  # the change that it belongs to, by its place

    @property
    def changes(self) -> bool:
        """Say whether it goes or comes."""
        return self.sign != " "


@dataclass(frozen=True)
class Hunk:
    """Lines of a diff that follow one another."""

    function: str  # that the first of them is in, if any
    lines: tuple[Line, ...]

    @property
    def header(self) -> str:
        """Return the line above it, as in any unified diff."""
        head = f"@@ {_range([one.old for one in self.lines], '-')} "
        head += f"{_range([one.new for one in self.lines], '+')} @@"
        return f"{head} {self.function}".rstrip()


@dataclass(frozen=True)
class PullRequest:
    """A pull request to one kata's code. Its changes are in order, and apart."""

    kata: Kata
    title: str
    description: tuple[str, str]
    changes: tuple[Change, ...]

    @property
    def path(self) -> str:
        """Return what the changed file is called."""
        return f"{self.kata.name.partition('_')[2]}.py"

    @property
    def is_wrong(self) -> bool:
        """Say whether it brings in a bug."""
        return any(change.effect is Effect.BREAKS for change in self.changes)

    @property
    def old(self) -> str:
        """Return the whole text before it."""
        return _text(self.kata, [one for one in self.changes if one.old_is_edited])

    @property
    def new(self) -> str:
        """Return the whole text after it."""
        return _text(self.kata, [one for one in self.changes if not one.old_is_edited])

    @cached_property
    def hunks(self) -> tuple[Hunk, ...]:
        """Return the diff, with as much around the changes as reading them takes."""
        return tuple(hunks(self.kata, self.changes))

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Return the lines of all hunks: a mark is a place among these."""
        return tuple(line for hunk in self.hunks for line in hunk.lines)

    @cached_property
    def numbered(self) -> tuple[int, ...]:
        """Return the places of the lines that can be marked, those that change: number 1 first."""
        return tuple(place for place, line in enumerate(self.lines) if line.changes)


def edited_alone(kata: Kata, change: Change) -> str:
    """Return the reference with the edit of one change alone."""
    return _text(kata, [change])


def hunks(kata: Kata, changes: Sequence[Change]) -> Iterator[Hunk]:
    """Yield the hunks of a diff that is made of these changes."""
    source = kata.correct_source.split("\n")
    outline = outline_of(kata.correct_source)
    rows = list(_rows(source, changes))
    shown = _shown(rows, source, changes, outline, around=_AROUND)
    waiting: list[Line] = []
    function = ""
    for (line, place), is_shown in zip(rows, shown, strict=True):
        if not is_shown and waiting:
            yield Hunk(function, tuple(waiting))
            waiting = []
        if is_shown and not waiting:
            found = outline.innermost(place)
            function = found.name if found else ""
        if is_shown:
            waiting.append(line)
    if waiting:
        yield Hunk(function, tuple(waiting))


def _rows(source: Sequence[str], changes: Sequence[Change]) -> Iterator[tuple[Line, int]]:
    """Yield every line of the diff, with its place in the reference."""
    old = new = 1
    place = 0
    bare: list[tuple[str, str, int | None, int]] = []
    for number, change in enumerate(changes):
        edit = change.edit
        bare += [(" ", source[i], None, i) for i in range(place, edit.start)]
        reference = source[edit.start : edit.stop]
        sides = (edit.lines, reference) if change.old_is_edited else (reference, edit.lines)
        for sign, text in _compared(*sides):
            bare.append((sign, text, None if sign == " " else number, edit.start))
        place = edit.stop
    bare += [(" ", source[i], None, i) for i in range(place, len(source))]
    for sign, text, change_number, at in _minus_first(bare):
        yield (
            Line(
                sign,
                text,
                old if sign != "+" else None,
                new if sign != "-" else None,
                change_number,
            ),
            at,
        )
        old += sign != "+"
        new += sign != "-"


def _compared(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, str]]:
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            yield from ((" ", text) for text in old[a:b])
        else:
            yield from (("-", text) for text in old[a:b])
            yield from (("+", text) for text in new[c:d])


def _minus_first(
    rows: Sequence[tuple[str, str, int | None, int]],
) -> Iterator[tuple[str, str, int | None, int]]:
    """Put the lines that go before those that come, where changes follow without a line between."""
    run: list[tuple[str, str, int | None, int]] = []
    for row in [*rows, (" ", "", None, -1)]:
        if row[0] != " ":
            run.append(row)
            continue
        yield from sorted(run, key=lambda one: one[0] == "+")
        run = []
        if row[3] >= 0:
            yield row


def _shown(
    rows: Sequence[tuple[Line, int]],
    source: Sequence[str],
    changes: Sequence[Change],
    outline: Outline,
    around: int,
) -> list[bool]:
    """Say of each line whether it is shown: functions that are not long as a whole."""
    spans = []
    for change in changes:
        start, stop = change.edit.start, change.edit.stop
        function = outline.innermost(start)
        least = around if function is None or function.lines > _WHOLE_FUNCTION else _LEAST_AROUND
        first, last = start - least, stop + least
        if function is not None:
            # Beyond a long function's own lines there is little to learn of it.
            short = function.lines <= _WHOLE_FUNCTION
            first = function.start if short else max(first, function.start)
            last = function.stop if short else min(last, function.stop)
        spans.append((max(0, min(first, start)), max(last, stop)))
    last_line = len(source) - (source[-1:] == [""])  # what follows the last line's end is no line
    return [
        line.changes or any(first <= at < min(last, last_line) for first, last in spans)
        for line, at in rows
    ]


def _text(kata: Kata, changes: Sequence[Change]) -> str:
    return "\n".join(edited(kata.correct_source.split("\n"), [one.edit for one in changes]))


def _range(numbers: Sequence[int | None], sign: str) -> str:
    there = [number for number in numbers if number is not None]
    return f"{sign}{there[0] if there else 0},{len(there)}"
