"""The curves of a run as one page of HTML, each beside the band of healthy runs."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from dojo.instruments.curves import Curve, Departure, short
from dojo.runner.log import RunLog
from dojo.wording.axes import Axis
from dojo.wording.pages import templates
from dojo.wording.quantities import count

WIDTH, HEIGHT = 720, 180  # of a drawing, in units of its own
_TICKS = (0.0, 0.5, 1.0)

Point = tuple[float, float]


def render_run(
    name: str, seed: int, log: RunLog, drawn: Sequence[Curve], left: Sequence[Departure]
) -> str:
    """Return the page of a run of this kata."""
    environment = templates()
    environment.filters.update(count=count)
    sentences = {departure.name: departure.sentence for departure in left}
    drawings = [_drawing(curve, sentences.get(curve.name, "")) for curve in drawn]
    return environment.get_template("run.html").render(
        name=name,
        seed=seed,
        log=log,
        width=WIDTH,
        height=HEIGHT,
        drawings=drawings,
        readings=[
            {name: drawing.get(name) for name in ("steps", "window", "numbers", "means", "healthy")}
            for drawing in drawings
        ],
        of_the_run=[one for one in left if one.name not in {curve.name for curve in drawn}],
    )


def _drawing(curve: Curve, sentence: str) -> dict[str, Any]:
    """Return what the template draws of a curve, and what its script reads off it."""
    axis = Axis.of(curve)
    facts: dict[str, Any] = {"name": curve.name, "sentence": sentence, "axis": axis}
    if axis is None:
        return facts
    steps = max(len(curve.values), len(curve.spans))
    return facts | {
        "steps": steps,
        "ticks": [(_y(place), short(axis.value(place))) for place in _TICKS],
        "lines": [_points(line) for line in _lines(curve.values, axis, steps)],
        "logged": [_points(line) for line in _lines(curve.logged, axis, steps)],
        "band": _points(_band(curve, axis, steps)),
        "window": curve.window,
        "numbers": [_told(value) for value in curve.logged],
        "means": [_told(value) for value in curve.values],
        "healthy": [span and [_told(span.low), _told(span.high)] for span in curve.spans],
    }


def _lines(values: Sequence[float | None], axis: Axis, steps: int) -> Iterator[list[Point]]:
    """Yield the points of each piece of a curve: it breaks where a number is not finite."""
    logged = [(step, value) for step, value in enumerate(values) if value is not None]
    for finite, piece in groupby(logged, lambda point: math.isfinite(point[1])):
        if finite:
            yield [(_x(step, steps), _y(axis.place(value))) for step, value in piece]


def _band(curve: Curve, axis: Axis, steps: int) -> list[Point]:
    """Return the outline of the band, which goes on over steps of which nothing is said."""
    known = [(step, span) for step, span in enumerate(curve.spans) if span is not None]
    return [
        *((_x(step, steps), _y(axis.place(span.ceiling))) for step, span in known),
        *((_x(step, steps), _y(axis.place(span.floor))) for step, span in reversed(known)),
    ]


def _x(step: int, steps: int) -> float:
    return WIDTH * step / max(steps - 1, 1)


def _y(place: float) -> float:
    return HEIGHT * (1 - place)


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _told(value: float | None) -> str:
    return "nothing" if value is None else short(value)
