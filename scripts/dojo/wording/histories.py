"""The histories of a class, side by side."""

from collections.abc import Sequence

from dojo.history.statistics import Stats
from dojo.testrun.printed import printable
from dojo.wording.quantities import duration
from dojo.wording.tables import render

_KINDS = 2  # of those that a learner missed most


def class_table(learners: Sequence[tuple[str, Stats]]) -> str:
    """Return a row a learner: what was solved, how often, and which kinds of bug were missed."""
    header = ("learner", "solved", "days", "in sessions", "runs", "hints", "missed most")
    return render(header, [(printable(name), *_cells(stats)) for name, stats in learners])


def _cells(stats: Stats) -> tuple[str, ...]:
    missed = [str(one.kind) for one in stats.kinds if one.missed][:_KINDS]
    return (
        f"{sum(level.solved for level in stats.levels)} of "
        f"{sum(level.katas for level in stats.levels)}",
        str(len(stats.days)),
        duration(stats.totals.seconds),
        str(stats.totals.runs),
        str(stats.totals.hints),
        ", ".join(missed),
    )
