"""What a failed comparison says beside its first line: known patterns, and a map of the errors.

Computed on failure alone; each function returns a text to put behind the first line.
"""

import numpy as np
import torch
from torch import Tensor

from dojo.instruments import comparisons
from dojo.instruments.error_map import error_map
from dojo.instruments.mismatch import Mismatch, Numbers
from dojo.instruments.order import order
from dojo.instruments.places import place
from dojo.instruments.recording import recorded
from dojo.instruments.shapes import shape_change
from dojo.instruments.values import change

_FEWEST = 4  # elements in which there is something to see
# More elements would take a good part of the time that a test has.
_MOST_CLAIMED = 2**18
_MOST_DRAWN = 2**22
_SENTENCES = 2


def evidence_of_values(
    said: str, actual: Tensor, expected: Tensor, close: Tensor, rtol: float, atol: float
) -> str:
    """Return what there is to see where values differ: sentences, and behind an empty line a map.

    The comparison is also kept, if a folder for it is named; `said` is its first line.
    """
    if not _FEWEST <= close.numel() <= _MOST_DRAWN or not _has_numbers(actual, expected):
        return ""
    with np.errstate(all="ignore"):  # NaN and infinity are compared with intent
        mismatch = Mismatch(
            _numbers(actual),
            _numbers(expected),
            (~close).cpu().numpy(),
            rtol,
            atol,
            expected.dtype is torch.bool,
        )
        lines = sentences(mismatch)
        if comparisons.are_wanted():
            comparisons.keep(recorded(said, lines, mismatch))
        if picture := error_map(mismatch):
            lines += ["", *picture]
    return "".join(f"\n{line}" for line in lines)


def evidence_of_shape(actual: Tensor, expected: Tensor, rtol: float, atol: float) -> str:
    """Return what there is to say where the shape is wrong, which has no map."""
    if actual.numel() > _MOST_CLAIMED or not _has_numbers(actual, expected):
        return ""
    with np.errstate(all="ignore"):
        sentence = shape_change(_numbers(actual), _numbers(expected), rtol, atol)
    return f"\n{sentence}" if sentence else ""


def sentences(mismatch: Mismatch) -> list[str]:
    """Return what pattern the errors have, the most specific sentence first; mostly none."""
    if mismatch.wrong.size > _MOST_CLAIMED:
        return []
    claims = (claim(mismatch) for claim in (order, place, change))
    return [claim for claim in claims if claim][:_SENTENCES]


def _has_numbers(*tensors: Tensor) -> bool:
    """Say whether the values of all can be had, and are on one line."""
    return all(x.layout is torch.strided and not (x.is_meta or x.is_complex()) for x in tensors)


def _numbers(x: Tensor) -> Numbers:
    values: Numbers = x.detach().double().cpu().resolve_neg().numpy()
    return values
