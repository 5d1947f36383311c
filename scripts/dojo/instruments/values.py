"""Says what the wrong values are, if they come from the expected ones in a simple way."""

import numpy as np

from dojo.instruments.mismatch import Mismatch, Numbers

_LEAST = 2  # wrong elements that all have the other sign
_LEAST_CONSTANT = 8  # the same for a constant that is read off the values
_SPREAD = 0.01  # expected values all alike differ from others by a factor and by an offset
_MOST_PARTS = 4096  # a factor that is one of so many parts is said as a fraction too


def change(mismatch: Mismatch) -> str | None:
    """Return what was done to each wrong value, as a sentence, or None where nothing simple was."""
    wrong = mismatch.wrong
    if mismatch.is_bool or np.count_nonzero(wrong) < _LEAST:
        return None
    actual, expected = mismatch.actual[wrong], mismatch.expected[wrong]
    probed = float(mismatch.expected[mismatch.probe])
    if not mismatch.denies(-probed) and mismatch.explained_by(-expected, wrong):
        return "Each wrong value has its sign flipped."
    if len(actual) < _LEAST_CONSTANT or not np.isfinite([actual, expected]).all():
        return None
    if np.ptp(expected) <= _SPREAD * np.abs(expected).max():
        return None
    return _factor(mismatch, probed, actual, expected) or _offset(
        mismatch, probed, actual, expected
    )


def _factor(mismatch: Mismatch, probed: float, actual: Numbers, expected: Numbers) -> str | None:
    largest = int(np.abs(expected).argmax())
    factor = float(actual[largest] / expected[largest])
    if factor == 0 or mismatch.denies(factor * probed):
        return None
    if not mismatch.explained_by(factor * expected, mismatch.wrong):
        return None
    return f"Each wrong value is {factor:.4g}{_fraction(factor)} times the expected one."


def _fraction(factor: float) -> str:
    parts = round(1 / abs(factor))
    if 2 <= parts <= _MOST_PARTS and abs(abs(factor) * parts - 1) < 1e-4:
        return f" ({'-' if factor < 0 else ''}1/{parts})"
    return ""


def _offset(mismatch: Mismatch, probed: float, actual: Numbers, expected: Numbers) -> str | None:
    offset = float((actual - expected).mean())
    if mismatch.denies(probed + offset):
        return None
    if not mismatch.explained_by(expected + offset, mismatch.wrong):
        return None
    sign = "minus" if offset < 0 else "plus"
    return f"Each wrong value is the expected one {sign} {abs(offset):.4g}."
