"""A finding, and the words that findings share."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_NAMED = 3  # in one sentence


class Kind(StrEnum):
    """What a finding is about."""

    UNOWNED = "unowned"
    NO_GRADIENT = "no gradient"
    ZERO_GRADIENT = "zero gradient"
    GRADIENT_NOT_FINITE = "gradient not finite"
    LARGE_UPDATE = "large update"
    SMALL_UPDATE = "small update"
    SHARED_MEMORY = "shared memory"
    NOT_A_NUMBER = "not a number"
    EXPLODED = "exploded"
    VANISHED = "vanished"
    DROPOUT = "dropout"
    RUNNING_STATISTICS = "running statistics"
    MODE = "mode"
    LEARNING_RATE = "learning rate"


@dataclass(frozen=True)
class Finding:
    """Something that healthy code seldom does, in a sentence."""

    kind: Kind
    sentence: str
    names: tuple[str, ...]  # of modules, parameters or optimisers


def listed(names: Sequence[str]) -> str:
    """Return the names in a sentence: all, or the first ones and how many more there are."""
    more = len(names) - _NAMED
    if more > 1:
        return f"{', '.join(names[:_NAMED])} and {more} more"
    head = ", ".join(names[:-1])
    return f"{head} and {names[-1]}" if head else names[-1]


def agreeing(names: Sequence[str], one: str, several: str) -> str:
    """Return the word that goes with so many names: was or were."""
    return one if len(names) == 1 else several
