"""Says how a wrong shape differs from the expected one."""

import numpy as np

from dojo.instruments.mismatch import Numbers
from dojo.instruments.order import permutations

_LEAST = 4  # elements; fewer match by chance


def shape_change(actual: Numbers, expected: Numbers, rtol: float, atol: float) -> str | None:
    """Return a sentence on a wrong shape: what makes the values match, or which axis is wrong."""
    shape, wanted = actual.shape, expected.shape
    if actual.size == expected.size >= _LEAST:
        orders = [("expected", expected), *permutations(expected)]
        for text, order in orders:
            if np.allclose(actual, order.reshape(shape), rtol, atol, equal_nan=True):
                read = "" if order.shape == shape else f".reshape{shape}"
                return f"The values are those of {text}{read}."
    if len(shape) != len(wanted):
        return None
    differ = [axis for axis, (n, m) in enumerate(zip(shape, wanted, strict=True)) if n != m]
    if len(differ) > 1:
        return None
    (axis,) = differ
    return f"Axis {axis} alone is wrong: its size is {shape[axis]}, not {wanted[axis]}."
