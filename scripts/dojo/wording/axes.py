"""Where the values of a curve lie on its vertical axis."""

import math
from dataclasses import dataclass

from dojo.instruments.curves import Curve

_DECADES = 1.7  # a loss that falls to a fiftieth: on a linear axis its end would be a flat line
_ROOM = 0.05  # of the range, above and below


@dataclass(frozen=True)
class Axis:
    """An axis that shows all of a curve and of healthy runs, linear or logarithmic.

    How far beyond them a band goes is of no interest where no curve goes, and may be cut off.
    """

    bottom: float
    top: float
    logarithmic: bool

    @classmethod
    def of(cls, curve: Curve) -> "Axis | None":
        """Return the axis of a curve; None where there is no finite value to draw."""
        spans = [span for span in curve.spans if span is not None]
        values = [value for value in curve.values if value is not None and math.isfinite(value)]
        shown = [*values, *(span.low for span in spans), *(span.high for span in spans)]
        if not shown:
            return None
        bottom, top = min(shown), max(shown)
        if bottom > 0 and math.log10(top / bottom) > _DECADES:
            return cls(bottom, top, True)
        room = _ROOM * (top - bottom or abs(top) or 1)
        # What is never negative needs no axis below zero.
        below = max(bottom - room, 0.0) if bottom >= 0 else bottom - room
        return cls(below, top + room, False)

    def place(self, value: float) -> float:
        """Return how far up a value lies, from 0 to 1; one beyond the axis lies at its end."""
        if self.logarithmic:
            share = math.log(max(value, self.bottom) / self.bottom) / math.log(
                self.top / self.bottom
            )
        else:
            share = (value - self.bottom) / (self.top - self.bottom)
        return min(max(share, 0.0), 1.0)

    def value(self, place: float) -> float:
        """Return the value so far up."""
        if self.logarithmic:
            return self.bottom * math.exp(place * math.log(self.top / self.bottom))
        return self.bottom + place * (self.top - self.bottom)
