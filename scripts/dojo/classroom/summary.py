"""What a class's grades add up to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dojo.classroom.grading import Grade
from dojo.kata.bug import Kind
from dojo.kata.kata import Kata


@dataclass(frozen=True)
class Missed:
    """How many of the planted bugs of one kind, or of one bug, are still there."""

    name: str
    left: int
    planted: int


def missed_kinds(grades: Sequence[Grade], katas: Mapping[str, Kata]) -> list[Missed]:
    """Return the kinds of bug that were left, most often missed first."""
    return _missed([(one, bug, katas[one.kata].bug(bug).kind) for one, bug in _counted(grades)])


def missed_bugs(grades: Sequence[Grade], katas: Mapping[str, Kata]) -> list[Missed]:
    """Return the bugs that were left, most often missed first."""
    titles = [
        (one, bug, f"{one.kata}: {katas[one.kata].bug(bug).title}") for one, bug in _counted(grades)
    ]
    return _missed(titles)


def _counted(grades: Sequence[Grade]) -> list[tuple[Grade, str]]:
    return [(one, bug) for one in grades if one.gone is not None for bug in one.planted]


def _missed(met: Sequence[tuple[Grade, str, Kind | str]]) -> list[Missed]:
    planted = Counter(str(name) for _, _, name in met)
    left = Counter(str(name) for one, bug, name in met if bug in one.left)
    worst = sorted(left, key=lambda name: (-left[name] / planted[name], -left[name], name))
    return [Missed(name, left[name], planted[name]) for name in worst]
