"""What the author of a request writes: what is true of it, and tells nothing of its worth.

Each sentence is drawn without a look at what the changes do; what it says is counted.
"""

import ast
import random
from collections.abc import Sequence

from dojo.kata.kata import Kata
from dojo.practice.review.changes import Change
from dojo.practice.review.edits import edited
from dojo.practice.review.outline import outline_of

_TITLES = (
    "Edit {where}",
    "Changes to {where}",
    "Rework {where}",
    "Revise {where}",
    "Another pass over {where}",
    "{what}: changes to {where}",
)
_SIZES = (
    "{minus} out and {plus} in; the rest of the file stays as it is.",
    "Takes out {minus} and puts in {plus}, nothing else in the file.",
    "The diff is {minus} less and {plus} more, all of it in {file}.",
)
_SAME_NAMES = (
    "No function comes or goes, and none changes its parameters.",
    "Every function keeps its name and its parameters.",
)
_OTHER_NAMES = (
    "A signature is among the lines that change.",
    "Please look at the signatures too: not all are as before.",
)
_ANY = (
    "I left everything outside of {where} alone.",
    "This is all that I want to change here for now.",
    "Small enough to read line by line, I hope.",
    "No other file is touched.",
)


def written(
    kata: Kata, changes: Sequence[Change], counts: tuple[int, int], rng: random.Random
) -> tuple[str, tuple[str, str]]:
    """Return a title and two lines, for changes that take out and put in so many lines."""
    where = _where(kata, changes)
    facts = {
        "where": where,
        "what": kata.name.partition("_")[2],
        "file": f"{kata.name.partition('_')[2]}.py",
        "minus": _lines(counts[0]),
        "plus": _lines(counts[1]),
    }
    title, size, other = rng.choice(_TITLES), rng.choice(_SIZES), rng.choice((*_ANY, None, None))
    if other is None:
        other = rng.choice(_SAME_NAMES if _signatures_stay(kata, changes) else _OTHER_NAMES)
    first, second = (one.format(**facts) for one in (size, other))
    return title.format(**facts), (first[0].upper() + first[1:], second)


def _where(kata: Kata, changes: Sequence[Change]) -> str:
    outline = outline_of(kata.correct_source)
    found = [outline.outermost(change.edit.start) for change in changes]
    names = list(dict.fromkeys(one.name if one else "the module" for one in found))
    if len(names) > 2:
        return f"{len(names)} places of {kata.name.partition('_')[2]}"
    return " and ".join(names)


def _signatures_stay(kata: Kata, changes: Sequence[Change]) -> bool:
    source = kata.correct_source.split("\n")
    sides = [
        "\n".join(edited(source, [one.edit for one in changes if one.old_is_edited is old]))
        for old in (True, False)
    ]
    one, other = map(_signatures, sides)
    return one == other


def _signatures(source: str) -> list[tuple[str, str]]:
    return [
        (node.name, ast.dump(node.args))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def _lines(number: int) -> str:
    return "1 line" if number == 1 else f"{number or 'no'} lines"
