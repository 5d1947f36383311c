"""Says whether the values are the expected ones in another order: permuted axes, or a shift."""

import itertools
from collections.abc import Iterator

import numpy as np

from dojo.instruments.mismatch import Mask, Mismatch, Numbers

_LEAST = 4  # wrong elements that a claim about order needs
_MOST_AXES = 4  # there are 24 orders of four
_FARTHEST = 8  # places that a shift may go


def order(mismatch: Mismatch) -> str | None:
    """Return in which order the values are, as a sentence, or None where it is none of these."""
    if mismatch.is_bool or np.count_nonzero(mismatch.wrong) < _LEAST:
        return None
    return _permuted(mismatch) or _shifted(mismatch)


def permutations(expected: Numbers) -> Iterator[tuple[str, Numbers]]:
    """Yield the values with their axes in each other order, and how one writes it."""
    if expected.ndim > _MOST_AXES:
        return
    in_place = tuple(range(expected.ndim))
    for axes in itertools.permutations(in_place):
        if axes != in_place:
            yield f"expected.permute{axes}", expected.transpose(axes)


def _permuted(mismatch: Mismatch) -> str | None:
    shape = mismatch.expected.shape
    probe = int(np.ravel_multi_index(mismatch.probe, shape))
    for text, values in permutations(mismatch.expected):
        if mismatch.denies(float(values.flat[probe])):
            continue
        if mismatch.explained_by(values.reshape(shape)):
            read = "" if values.shape == shape else f".reshape{shape}"
            return f"The values are those of {text}{read}."
    return None


def _shifted(mismatch: Mismatch) -> str | None:
    for axis, length in enumerate(mismatch.expected.shape):
        for places in range(1, min(_FARTHEST, length // 3) + 1):
            for shift in (places, -places):
                claim = _shifted_by(mismatch, axis, shift)
                if claim:
                    return claim
    return None


def _shifted_by(mismatch: Mismatch, axis: int, shift: int) -> str | None:
    """Say it if each value is the one expected `shift` places before it."""
    ndim, length = mismatch.expected.ndim, mismatch.expected.shape[axis]
    probed = mismatch.probe[axis] - shift
    if 0 <= probed < length:
        place = (*mismatch.probe[:axis], probed, *mismatch.probe[axis + 1 :])
        if mismatch.denies(float(mismatch.expected[place])):
            return None
    to, source = _part(axis, shift, ndim), _part(axis, -shift, ndim)
    if not _explains_most(mismatch.wrong, to):
        return None
    if not mismatch.explained_by(mismatch.expected[source], to):
        return None
    count = abs(shift)
    where = "before" if shift > 0 else "behind"
    if mismatch.explained_by(np.roll(mismatch.expected, shift, axis)):
        edge = "wrapped round"
    else:
        edge = f"the {'first' if shift > 0 else 'last'}{'' if count == 1 else f' {count}'} aside"
    places = "1 place" if count == 1 else f"{count} places"
    return f"Each value is the one expected {places} {where} it along axis {axis}, {edge}."


def _part(axis: int, shift: int, ndim: int) -> tuple[slice, ...]:
    """Return all but the first places of an axis, or all but the last if the shift is negative."""
    along = slice(shift, None) if shift > 0 else slice(None, shift)
    return tuple(along if one == axis else slice(None) for one in range(ndim))


def _explains_most(wrong: Mask, part: tuple[slice, ...]) -> bool:
    """Say whether enough of what is wrong lies in a part; the edge alone is no shift."""
    inside = int(np.count_nonzero(wrong[part]))
    return inside >= _LEAST and 2 * inside > int(np.count_nonzero(wrong))
