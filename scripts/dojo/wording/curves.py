"""The curves of a run as text, each beside the band of healthy runs."""

import math
import re
from itertools import pairwise

import numpy as np
from plotille import Canvas

from dojo.instruments.curves import Curve, short
from dojo.wording.axes import Axis

CURVE = re.compile("[\u2801-\u28ff]+")  # the characters that a curve is drawn with
BAND = re.compile("░+")
LEGEND = "⠒⠒ this run, ░░ healthy runs"

_LABELS = 10  # columns for the values beside the axis
_EMPTY = "\u2800"
_ACROSS, _UP = 2, 4  # the dots of a character


def draw(curve: Curve, width: int, height: int) -> str:
    """Return a curve beside its band, as so many lines of at most so many characters.

    The first line is a title and the last the steps. The text has no colours: `CURVE` and `BAND`
    find what to colour.
    """
    axis = Axis.of(curve)
    title = curve.name
    if curve.window > 1:
        title += f", mean of {curve.window} steps"
    if axis is not None and axis.logarithmic:
        title += ", logarithmic"
    if axis is None:
        return f"{title}: no finite number to draw"
    rows, columns = height - 2, width - _LABELS - 2
    steps = max(len(curve.values), len(curve.spans))
    run, band = _run(curve, axis, columns, rows, steps), _band(curve, axis, columns, rows, steps)
    labels = {row: axis.value(1 - row / (rows - 1)) for row in (0, rows // 2, rows - 1)}
    lines = [title]
    for row, (above, below) in enumerate(zip(run, band, strict=True)):
        label = f"{short(labels[row]):>{_LABELS}} ┤" if row in labels else " " * _LABELS + " │"
        cells = (
            a if a != _EMPTY else " " if b == _EMPTY else "░"
            for a, b in zip(above, below, strict=True)
        )
        lines.append((label + "".join(cells)).rstrip())
    last = f"step {steps}"
    lines.append(f"{'step 1':>{_LABELS + 7}}{last:>{columns - 5}}")
    return "\n".join(lines)


def _run(curve: Curve, axis: Axis, columns: int, rows: int, steps: int) -> list[str]:
    canvas = _canvas(columns, rows, steps)
    points = [
        (step, axis.place(value))
        for step, value in enumerate(curve.values)
        if value is not None and math.isfinite(value)
    ]
    for (step, place), (next_step, next_place) in pairwise([*points[:1], *points]):
        canvas.line(step, place, next_step, next_place)
    return _rows(canvas)


def _band(curve: Curve, axis: Axis, columns: int, rows: int, steps: int) -> list[str]:
    canvas = _canvas(columns, rows, steps)
    known = [(step, span) for step, span in enumerate(curve.spans) if span is not None]
    if known:
        # In every column, also where healthy runs log a number only now and then.
        at = [step for step, _ in known]
        columns_at = np.linspace(at[0], at[-1], _ACROSS * columns)
        floors = np.interp(columns_at, at, [axis.place(span.floor) for _, span in known])
        ceilings = np.interp(columns_at, at, [axis.place(span.ceiling) for _, span in known])
        for x, floor, ceiling in zip(columns_at, floors, ceilings, strict=True):
            canvas.line(x, floor, x, ceiling)
    return _rows(canvas)


def _rows(canvas: Canvas) -> list[str]:
    drawn: str = canvas.plot("\n")
    return drawn.split("\n")


def _canvas(columns: int, rows: int, steps: int) -> Canvas:
    # Its limits are where the next dot would be.
    across, up = _ACROSS * columns, _UP * rows
    last = max(steps - 1, 1)
    return Canvas(columns, rows, 0, 0, last * across / (across - 1), up / (up - 1))
