"""A comparison that failed, element by element: what every picture and every claim is made from."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]

# A prediction leaves no more than this share of an error. Where an error is hardly above the
# tolerance, to be within the tolerance of some other value too says nothing.
_LEFT = 0.1


@dataclass(frozen=True)
class Mismatch:
    """Two tensors of one shape that differ, and where."""

    actual: Numbers
    expected: Numbers
    wrong: Mask
    rtol: float
    atol: float
    is_bool: bool = False

    @cached_property
    def error(self) -> Numbers:
        """Return the size of each error: zero where right, NaN where one side alone is NaN."""
        return np.where(self.wrong, np.abs(self.actual - self.expected), 0.0)

    @property
    def exact(self) -> bool:
        """Say whether there is no tolerance, so that errors are measured in ones."""
        return self.rtol == self.atol == 0

    @cached_property
    def excess(self) -> Numbers:
        """Return each error in tolerances. Numpy takes NaN for the largest, and sorts it so."""
        allowed = 1.0 if self.exact else self.atol + self.rtol * np.abs(self.expected)
        return np.where(self.wrong, self.error / allowed, 0.0)

    @cached_property
    def probe(self) -> tuple[int, ...]:
        """Return the index of a wrong element, from the middle of them."""
        wrong = np.flatnonzero(self.wrong)
        middle = np.unravel_index(wrong[len(wrong) // 2], self.wrong.shape)
        return tuple(map(int, middle))

    def denies(self, predicted: float) -> bool:
        """Say whether the probe alone shows that it is not explained: much faster, often enough."""
        actual = float(self.actual[self.probe])
        if not math.isfinite(predicted):
            return actual != predicted and not (math.isnan(actual) and math.isnan(predicted))
        return not abs(actual - predicted) <= self.atol + self.rtol * abs(predicted)

    def explained_by(
        self, predicted: Numbers, part: Mask | tuple[slice, ...] | None = None
    ) -> bool:
        """Say whether each actual value is the predicted one, there where both are a part of it.

        Without a part, it is all of it. Right elements are compared too.
        """
        where = ... if part is None else part
        actual, error, wrong = self.actual[where], self.error[where], self.wrong[where]
        left = np.abs(actual - predicted)
        close = left <= self.atol + self.rtol * np.abs(predicted)
        close &= np.isfinite(predicted)
        close &= ~wrong | (left <= _LEFT * error) | np.isnan(error)
        same = (actual == predicted) | (np.isnan(actual) & np.isnan(predicted))
        return bool((close | same).all())
