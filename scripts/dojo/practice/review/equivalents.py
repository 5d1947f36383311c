"""The changes of a reference that `mutants.toml` proves to be equivalent, as edits."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dojo.kata.kata import Kata
from dojo.kata.survivors import ANYTHING, Kind, Survivor, read_survivors
from dojo.practice.review.edits import Edit, edited
from dojo.practice.review.outline import Outline


@dataclass(frozen=True)
class Equivalent:
    """A change that no input tells from the reference, and why."""

    edit: Edit
    reason: str
    function: str  # that it is in; empty outside of all


# What is as right and slower, or right in one place alone, is nothing to let in.
_DEPENDS = re.compile(r"\b(speed|faster|slower|cost|undefined|interpreter)", re.IGNORECASE)


def equivalents(kata: Kata, source: Sequence[str], outline: Outline) -> Iterator[Equivalent]:
    """Yield those whose text is certain: a mutant is listed by its lines without their indents.

    None of a kernel: much of what its tests cannot tell apart would not do on a GPU.
    """
    if kata.needs_triton:
        return
    for survivor in read_survivors(kata):
        if _DEPENDS.search(survivor.reason):
            continue
        if survivor.kind is not Kind.EQUIVALENT or survivor.after == ANYTHING:
            continue
        edit = _edit(survivor, source, outline)
        if edit is not None:
            yield Equivalent(edit, survivor.reason, survivor.function)


def _edit(survivor: Survivor, source: Sequence[str], outline: Outline) -> Edit | None:
    start, stop = 0, len(source)
    if survivor.function:
        function = outline.named(survivor.function)
        if function is None:
            return None
        start, stop = function.start, function.stop
    before, after = survivor.before.split("\n"), survivor.after.split("\n")
    # Line for line alone: only so each line's indent is known.
    if not survivor.before or len(before) != len(after) or "" in after:
        return None
    places = [
        line
        for line in range(start, stop - len(before) + 1)
        if [text.strip() for text in source[line : line + len(before)]] == before
    ]
    wanted = survivor.occurrence or 1
    if not 1 <= wanted <= len(places) or (survivor.occurrence is None and len(places) != 1):
        return None
    first = places[wanted - 1]
    lines = tuple(
        old[: len(old) - len(old.lstrip())] + new
        for old, new in zip(source[first : first + len(before)], after, strict=True)
    )
    edit = Edit(first, first + len(before), lines)
    return edit if is_code(edited(source, [edit])) else None


def is_code(lines: Sequence[str]) -> bool:
    """Say whether lines are valid Python."""
    try:
        ast.parse("\n".join(lines))
    except SyntaxError:
        return False
    return True
