"""Scores reviews as a detector is scored: each change that was judged is a trial.

A change that brings a bug in is a signal; one that mends a bug, or is harmless, is noise.
Source: Macmillan and Creelman, Detection Theory, 2nd edition; the correction is Hautus's (1995).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from dojo.history.reviews import Effect, Reviewed


@dataclass(frozen=True)
class Score:
    """What came of a number of changes."""

    hits: int = 0
    misses: int = 0
    false_alarms: int = 0
    approvals: int = 0  # of what is right

    @property
    def changes(self) -> int:
        """Return how many changes were judged."""
        return self.hits + self.misses + self.false_alarms + self.approvals

    @property
    def hit_rate(self) -> float:
        """Return the share of the bugs that were marked, corrected so that it is never 0 or 1."""
        return (self.hits + 0.5) / (self.hits + self.misses + 1)

    @property
    def false_alarm_rate(self) -> float:
        """Return the share of the right changes that were marked, corrected in the same way."""
        return (self.false_alarms + 0.5) / (self.false_alarms + self.approvals + 1)

    @property
    def sensitivity(self) -> float | None:
        """Return d': how well what is wrong is told from what is right; 0 is by chance.

        None where there was nothing to tell apart.
        """
        if not self._has_both:
            return None
        return _z(self.hit_rate) - _z(self.false_alarm_rate)

    @property
    def bias(self) -> float | None:
        """Return the criterion c: above 0 for one who rather approves, below for one who marks."""
        if not self._has_both:
            return None
        return -(_z(self.hit_rate) + _z(self.false_alarm_rate)) / 2

    @property
    def _has_both(self) -> bool:
        return bool(self.hits + self.misses) and bool(self.false_alarms + self.approvals)


def score(changes: Iterable[Reviewed]) -> Score:
    """Count what came of changes."""
    found = list(changes)
    wrong = [one.marked for one in found if one.effect is Effect.BREAKS]
    right = [one.marked for one in found if one.effect is not Effect.BREAKS]
    return Score(sum(wrong), len(wrong) - sum(wrong), sum(right), len(right) - sum(right))


def _z(share: float) -> float:
    return NormalDist().inv_cdf(share)
