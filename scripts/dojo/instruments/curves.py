"""Says where the numbers of a run leave the band of healthy runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from dojo.instruments.bands import Band, Log, Span, means, window

# Where healthy runs differ by chance, chance may put a step outside; so many in a row it does not.
_PATIENCE = 3
_WHOLE = 1e7  # whole numbers below it are shown in full


@dataclass(frozen=True)
class Curve:
    """A number of a run, step by step, beside what is healthy; None where there is nothing."""

    name: str
    logged: tuple[float | None, ...]
    values: tuple[float | None, ...]  # means over so many steps: what is compared, and drawn
    window: int
    spans: tuple[Span | None, ...]


@dataclass(frozen=True)
class Departure:
    """A number of a run that leaves the band of healthy runs: at which step first, and how."""

    name: str
    step: int  # counted from 1
    sentence: str

    def __str__(self) -> str:
        """Return it in words."""
        return self.sentence


@dataclass(frozen=True)
class _Point:
    step: int
    value: float | None
    span: Span

    @property
    def certain(self) -> bool:
        """Say whether no chance brings this about."""
        return self.value is None or math.isnan(self.value) or self.span.agreed

    @property
    def distance(self) -> float:
        """Return how far outside it is."""
        if self.value is None or math.isnan(self.value):
            return math.inf
        return max(self.span.floor - self.value, self.value - self.span.ceiling)

    @property
    def how(self) -> str:
        """Say in which way it is outside; nothing if it is not."""
        if self.value is None:
            return "is missing"
        if math.isnan(self.value):
            return "is NaN"
        if self.value > self.span.ceiling:
            return "is above healthy runs"
        return "is below healthy runs" if self.value < self.span.floor else ""


def curves(log: Log, band: Band | None) -> list[Curve]:
    """Return every number of a run, and of healthy ones, in the order they were logged in."""
    healthy = {} if band is None else {name: tuple(band.spans(name)) for name in band.numbers}
    names = dict.fromkeys([*healthy, *(name for step in log for name in step)])
    size = window(len(log) if band is None else band.steps)
    averaged = means(log, size)
    return [
        Curve(
            name,
            logged=tuple(step.get(name) for step in log),
            values=tuple(step.get(name) for step in averaged),
            window=size,
            spans=healthy.get(name, ()),
        )
        for name in names
    ]


def departures(log: Log, band: Band, *, ended: bool = True) -> list[Departure]:
    """Return the numbers that leave the band, the earliest first; none of a healthy run.

    A number leaves it where its mean is outside at three steps in a row, or at one if healthy runs
    all agree there, or where it is NaN or missing. How many steps there are counts only if the run
    `ended` by itself.
    """
    found = [one for curve in curves(log, band) for one in _departures(curve)]
    if ended and len(log) != band.steps:
        sentence = f"the run has {len(log)} steps, healthy runs {band.steps}"
        found.append(Departure("steps", min(len(log), band.steps) + 1, sentence))
    return sorted(found, key=lambda departure: departure.step)


def _departures(curve: Curve) -> Iterator[Departure]:
    """Yield the departure of one number, if there is one."""
    points = [
        _Point(step, value, span)
        for step, (value, span) in enumerate(zip(curve.values, curve.spans, strict=False), 1)
        if span is not None
    ]
    patience = min(_PATIENCE, len(points))
    groups = (list(group) for how, group in groupby(points, attrgetter("how")) if how)
    stretches = [
        group for group in groups if len(group) >= patience or any(point.certain for point in group)
    ]
    if stretches:
        first = stretches[0][0].step
        worst = max(stretches, key=lambda stretch: max(point.distance for point in stretch))
        sentence = _sentence(curve.name, worst, lasts=worst[-1] is points[-1])
        if worst[0].step != first:
            sentence += f" (outside first at step {first})"
        yield Departure(curve.name, first, sentence)


def _sentence(name: str, stretch: list[_Point], *, lasts: bool) -> str:
    """Say how a number is outside for some steps, with its value where it is farthest."""
    first, last = stretch[0].step, stretch[-1].step
    worst = max(stretch, key=lambda point: point.distance)
    healthy = f"healthy {short(worst.span.low)}"
    if short(worst.span.high) != short(worst.span.low):
        healthy += f" to {short(worst.span.high)}"
    if first == last:
        when = f"at step {first}"
    else:
        when = f"from step {first} on" if lasts else f"from step {first} to {last}"
    if worst.value is None or math.isnan(worst.value):
        return f"{name} {worst.how} {when}; {healthy}"
    at = "" if first == last else f" at step {worst.step}"
    return f"{name} {worst.how} {when}: {short(worst.value)}{at}, {healthy}"


def short(value: float) -> str:
    """Return a number as short as a person reads it: 0.0312, 65536."""
    if value.is_integer() and abs(value) < _WHOLE:
        return f"{value:.0f}"
    return f"{value:.4g}"
