"""A catalogued bug: an edit of the reference, and the story told about it."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

# How the id of a bug begins that an operator made; see `dojo.kata.fresh`.
FRESH = "fresh-"


class Kind(StrEnum):
    """What sort of mistake a bug is, whatever the kata is about."""

    AXIS = "axis"  # works along, orders or indexes by the wrong axis; wrong shape
    MASK = "mask"  # lets in what is to be left out, or the reverse: padding, future, ignored labels
    SCALE = "scale"  # a wrong factor, divisor or normaliser; a mean for a sum
    DTYPE = "dtype"  # range, precision, rounding, overflow, casts
    STATE = "state"  # kept, lost or mixed up between calls, steps, modes, processes
    BOUNDARY = "boundary"  # off by one, ties, the first and the last, the empty case
    ALIASING = "aliasing"  # memory that is shared or overwritten where it must not be
    GRADIENT = "gradient"  # a wrong, missing or cut backward pass
    SCHEDULE = "schedule"  # when something happens: order of steps, rates, warm-up, accumulation
    DATA = "data"  # which values go in: the wrong input, label, sample, leak or draw
    FORMULA = "formula"  # a wrong operation, sign or term


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
    kind: Kind
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
