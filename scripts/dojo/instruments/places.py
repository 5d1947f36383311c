"""Says where the wrong elements are, if that is a pattern: each of them is in it, and no right one.

So every claim compares the pattern with all elements.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dojo.instruments.mismatch import Mask, Mismatch

_NAMED = 3  # rows that are named one by one; more would be no pattern
_LEAST = 3  # elements that make a pattern, where nothing but their number speaks for it


def place(mismatch: Mismatch) -> str | None:
    """Return where the wrong elements are, as a sentence, or None where that is no pattern."""
    if mismatch.wrong.all():
        return None
    claims: Iterator[str | None] = (
        claim
        for claim in (
            _along_an_axis(mismatch.wrong),
            _about_the_diagonal(mismatch.wrong),
            _where_expected(mismatch),
        )
    )
    return next((claim for claim in claims if claim), None)


def _along_an_axis(wrong: Mask) -> str | None:
    """Return which whole rows, columns or slices are wrong."""
    axes = range(wrong.ndim)
    for axis in axes:
        others = tuple(other for other in axes if other != axis)
        hit = wrong.any(others)
        if np.array_equal(hit, wrong.all(others)):
            whole = wrong.size > wrong.shape[axis]
            which = _which(np.flatnonzero(hit), wrong.shape[axis], axis, wrong.ndim, whole)
            if which:
                return f"Only {which} wrong."
    return None


def _which(hit: NDArray[np.int64], n: int, axis: int, ndim: int, whole: bool) -> str | None:
    """Return which of the n slices along an axis these are, and the verb.

    Where they are not `whole` slices but single elements, any few of them would be a pattern.
    """
    first, last, count = int(hit[0]), int(hit[-1]), len(hit)
    one, many, along = _nouns(axis, ndim if whole else 1)
    if count == 1:
        if first in (0, n - 1):
            return f"the {'last' if first else 'first'} {one}{along} is"
        return f"{one} {first}{along} is" if whole else None
    if count == last - first + 1:
        if last == n - 1:
            return f"the last {count} of {n} {many}{along} are"
        if first == 0:
            return f"the first {count} of {n} {many}{along} are"
        return f"{many} {first} to {last}{along} are" if whole else None
    step = int(hit[1]) - first
    if count >= _LEAST and (np.diff(hit) == step).all() and first < step and last + step >= n:
        return f"every {_ordinal(step)} {one}{along}, from {one} {first} on, is"
    if whole and count <= _NAMED:
        listed = ", ".join(map(str, hit[:-1]))
        return f"{many} {listed} and {last}{along} are"
    return None


def _nouns(axis: int, ndim: int) -> tuple[str, str, str]:
    """Return what lies along an axis, one and many, and which axis it is where that has no name."""
    if ndim == 1:
        return "element", "elements", ""
    if ndim == 2:
        return ("column", "columns", "") if axis else ("row", "rows", "")
    return "slice", "slices", f" along axis {axis}"


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def _about_the_diagonal(wrong: Mask) -> str | None:
    """Return which diagonals of the last two axes are wrong, in every matrix the same ones."""
    if wrong.ndim < 2 or min(wrong.shape[-2:]) < _LEAST:
        return None
    rows, columns = wrong.shape[-2:]
    matrices = wrong.reshape(-1, rows, columns)
    some = matrices.any(0)
    if some.sum() < _LEAST or not np.array_equal(some, matrices.all(0)):
        return None
    # A diagonal is those elements for which column - row is the same.
    diagonals = np.arange(columns) - np.arange(rows)[:, None]
    lowest, highest = 1 - rows, columns - 1
    hit = diagonals[some]
    low, high = int(hit.min()), int(hit.max())
    if not np.array_equal(some, (diagonals >= low) & (diagonals <= high)):
        return None
    if low == high == 0:
        return "Only the diagonal is wrong."
    if high == highest and low in (0, 1):
        return f"Only the entries {'above' if low else 'on and above'} the diagonal are wrong."
    if low == lowest and high in (0, -1):
        return f"Only the entries {'below' if high else 'on and below'} the diagonal are wrong."
    if high == highest:
        which = f"is {low} or more"
    elif low == lowest:
        which = f"is {high} or less"
    elif low == high:
        which = f"is {low}"
    else:
        which = f"is from {low} to {high}, a band,"
    return f"Only the entries for which column - row {which} are wrong."


def _where_expected(mismatch: Mismatch) -> str | None:
    """Return which expected values the wrong elements have, and no right one."""
    if mismatch.wrong.sum() < _LEAST:
        return None
    expected = mismatch.expected
    for which, mask in (
        ("-inf, that is, masked", expected == -np.inf),
        ("negative", expected < 0),
        ("zero", expected == 0),
    ):
        if np.array_equal(mask, mismatch.wrong):
            return f"Only where the expected value is {which}, it is wrong."
    return None
