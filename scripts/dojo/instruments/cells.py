"""Pools the elements of a tensor into few cells, each shown by its worst element."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dojo.instruments.mismatch import Numbers


@dataclass(frozen=True)
class Cells:
    """A matrix of cells over the worst slice of a tensor."""

    worst: NDArray[np.int64]  # of each cell, the index of its worst element in the flat tensor
    slice: str  # as one writes it: [2, :, :]; empty where it is the whole tensor
    shape: tuple[int, int]  # of the slice, in elements


def cells(excess: Numbers, rows: int, columns: int) -> Cells:
    """Return at most so many cells over the last two axes, those of size one left out."""
    longer = [axis for axis, size in enumerate(excess.shape) if size > 1]
    shown, others = longer[-2:], longer[:-2]
    place = np.zeros(excess.ndim, dtype=int)
    if others:
        by_slice = excess.max(tuple(shown), keepdims=True)
        place[:] = np.unravel_index(int(by_slice.argmax()), by_slice.shape)
    index = tuple(slice(None) if axis in shown else int(at) for axis, at in enumerate(place))
    numbers = np.arange(excess.size).reshape(excess.shape)[index]
    matrix = numbers[None, :] if numbers.ndim == 1 else numbers
    text = ", ".join(":" if axis in shown else str(at) for axis, at in enumerate(place))
    worst = _pooled(matrix, excess.ravel(), rows, columns)
    return Cells(worst, f"[{text}]" if others else "", (matrix.shape[0], matrix.shape[1]))


def _pooled(
    matrix: NDArray[np.int64], excess: Numbers, rows: int, columns: int
) -> NDArray[np.int64]:
    """Return of each cell the number with the largest excess, the first of several."""
    height, width = matrix.shape
    rows, columns = min(rows, height), min(columns, width)
    if (rows, columns) == (height, width):
        return matrix
    cell = (np.arange(height) * rows // height)[:, None] * columns + (
        np.arange(width) * columns // width
    )
    rising = np.argsort(excess[matrix].ravel()[::-1], kind="stable")
    worst = np.empty(rows * columns, dtype=np.int64)
    # The last of those that go to one cell stays.
    worst[cell.ravel()[::-1][rising]] = matrix.ravel()[::-1][rising]
    return worst.reshape(rows, columns)
