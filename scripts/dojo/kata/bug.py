"""A catalogued bug: an edit of the reference, and the story told about it."""

from collections.abc import Collection
from dataclasses import dataclass

# How the id of a bug begins that an operator made; see `dojo.kata.fresh`.
FRESH = "fresh-"


@dataclass(frozen=True)
class Question:
    """What an interviewer would ask about a bug, and a good answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class Bug:
    """An edit of the reference that plants one bug, and the story told about it."""

    id: str
    title: str
    find: str
    replace: str
    killed_by: tuple[str, ...]
    hints: tuple[str, ...]
    why: str
    seen_in: tuple[str, ...] = ()
    gpu: bool = False
    apart: tuple[str, ...] = ()  # bugs with which it behaves like another: not drawn together
    over_fix_of: str = ""  # the bug of which it is a tempting fix, and a wrong one
    ask: tuple[Question, ...] = ()


def kept_apart(bugs: Collection[Bug]) -> list[str]:
    """Return the ids of those bugs that another of them is not to be drawn with."""
    apart = {bug_id for bug in bugs for bug_id in bug.apart}
    return [bug.id for bug in bugs if bug.id in apart]
