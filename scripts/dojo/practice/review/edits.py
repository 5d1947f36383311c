"""Edits of whole lines of a reference, which can be made together where they are apart."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_WORD = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class Edit:
    """Other lines in the place of those from `start` (from 0) up to `stop`, which stays."""

    start: int
    stop: int
    lines: tuple[str, ...]
    # What the edit rests on: no other edit may touch a line that has one of these names.
    names: frozenset[str] = field(default=frozenset(), compare=False)

    def words(self, source: Sequence[str]) -> set[str]:
        """Return the names on the lines that it takes out or puts in."""
        touched = [*source[self.start : self.stop], *self.lines]
        return {word for line in touched for word in _WORD.findall(line)}


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, each without its end."""
    return text.split("\n")


def difference(source: Sequence[str], other: Sequence[str], *names: str) -> Edit | None:
    """Return the one edit that makes the other text of the source, or None for no difference."""
    if source == other:
        return None
    least = min(len(source), len(other))
    first = next((i for i in range(least) if source[i] != other[i]), least)
    rest = least - first
    last = next((i for i in range(rest) if source[-1 - i] != other[-1 - i]), rest)
    lines = tuple(other[first : len(other) - last])
    return Edit(first, len(source) - last, lines, frozenset(names))


def apart(source: Sequence[str], one: Edit, other: Edit) -> bool:
    """Say whether two edits share no line, and neither touches what the other rests on."""
    if max(one.start, other.start) < min(one.stop, other.stop):
        return False
    if one.start == other.start or one.start < other.start < one.stop:
        return False
    if other.start < one.start < other.stop:
        return False
    return not (one.names & other.words(source) or other.names & one.words(source))


def edited(source: Sequence[str], edits: Iterable[Edit]) -> list[str]:
    """Return the source with edits made that are apart."""
    lines = list(source)
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        lines[edit.start : edit.stop] = edit.lines
    return lines
