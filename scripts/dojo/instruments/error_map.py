"""Draws with characters where a tensor is wrong."""

import numpy as np
from numpy.typing import NDArray

from dojo.instruments.cells import Cells, cells
from dojo.instruments.mismatch import Mismatch

_ROWS, _COLUMNS = 16, 32  # it fits beside the brief on a screen of 90 columns
_FEWEST = 4  # cells

_RIGHT, _SMALL, _MIDDLE, _LARGE, _ZERO, _NAN = ".-+#0N"
_SHARES = (1 / 1000, 1 / 10)  # of the largest error, what is small and what is not large


def error_map(mismatch: Mismatch) -> list[str]:
    """Return a map of the errors as lines; none where there are too few cells for a picture."""
    pooled = cells(mismatch.excess, _ROWS, _COLUMNS)
    if pooled.worst.size < _FEWEST:
        return []
    excess = mismatch.excess.ravel()[pooled.worst]
    largest = float(excess.max(initial=0.0, where=np.isfinite(excess)))
    marks = _marks(mismatch, pooled, largest)
    legend = {
        _RIGHT: "right",
        _LARGE: f"off by up to {largest:.2g}" + ("" if mismatch.exact else " tolerances"),
        _MIDDLE: "by a tenth of that or less",
        _SMALL: "by a thousandth or less",
        _ZERO: "wrongly zero",
        _NAN: "NaN",
    }
    there = {mark: text for mark, text in legend.items() if (marks == mark).any()}
    title = _title(pooled)
    if len(there) == 1:  # no map, and so no marks either
        (text,) = there.values()
        return [f"{title} all are {text}"]
    said = ", ".join(f"{mark} {text}" for mark, text in there.items())
    return [title, *("".join(row) for row in marks), said]


def _marks(mismatch: Mismatch, pooled: Cells, largest: float) -> NDArray[np.str_]:
    """Return the character of each cell."""
    actual, expected, excess = (
        values.ravel()[pooled.worst]
        for values in (mismatch.actual, mismatch.expected, mismatch.excess)
    )
    small, middle = (share * largest for share in _SHARES)
    marks = np.full(excess.shape, _LARGE)
    # The later ones overrule the earlier.
    marks[excess <= middle] = _MIDDLE
    marks[excess <= small] = _SMALL
    marks[(actual == 0) & (expected != 0)] = _ZERO
    marks[np.isnan(actual)] = _NAN
    marks[excess == 0] = _RIGHT
    return marks


def _title(pooled: Cells) -> str:
    of = f" of slice {pooled.slice}, the worst" if pooled.slice else ""
    height, width = (
        -(-size // shown) for size, shown in zip(pooled.shape, pooled.worst.shape, strict=True)
    )
    each = f"; a cell is up to {height} by {width}" if max(height, width) > 1 else ""
    return f"Errors{of} ({pooled.shape[0]} by {pooled.shape[1]}{each}):"
