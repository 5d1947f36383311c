"""Measures the loop from save to verdict, one figure after the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dojo.benchmarks import saves, variants
from dojo.benchmarks.sizes import Sizes
from dojo.errors import DojoError
from dojo.kata.kata import Kata
from dojo.project import Project


@dataclass(frozen=True)
class Comparison:
    """Seconds that a task takes us, and another tool; none and a reason where that failed."""

    task: str
    tool: str
    ours: float
    theirs: float | None
    reason: str = ""


def comparisons(project: Project, kata: Kata, sizes: Sizes) -> Iterator[Comparison]:
    """Measure on a copy of the project, and yield each comparison as it is made.

    The first two work on every machine: they need nothing but pytest, whose first failure comes
    with its verdict.
    """
    ours = saves.ours(project, kata, sizes.saves)
    cold = saves.cold_pytest(project, kata, sizes.saves)
    yield Comparison("save to first failure", "cold pytest", ours.failure, cold)
    yield Comparison("save to verdict", "cold pytest", ours.verdict, cold)
    yield Comparison("save to count", "cold pytest", ours.count, cold)
    yield compared(
        "save to verdict",
        "pytest-watcher",
        ours.verdict,
        lambda: saves.pytest_watcher(project, kata, sizes.saves),
    )
    yield compared(
        "a mutant",
        "cosmic-ray",
        variants.ours_per_mutant(project, kata),
        lambda: variants.cosmic_ray_per_mutant(project, kata, sizes.cosmic_ray_seconds),
    )


def compared(task: str, tool: str, ours: float, theirs: Callable[[], float]) -> Comparison:
    """Measure the other tool; our figure stands without it."""
    try:
        return Comparison(task, tool, ours, theirs())
    except DojoError as error:
        return Comparison(task, tool, ours, None, str(error))
