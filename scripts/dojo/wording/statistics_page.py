"""The statistics as one page of HTML, which needs nothing from anywhere else."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from dojo.history.statistics import Stats, Timing
from dojo.wording.pages import templates
from dojo.wording.quantities import clock, count, duration

_WEEKS = 12
_CELL = 20  # the side of a day in the calendar, its gap included
_BUGS = 8  # of those missed, the first ones
_TIMINGS = 10  # of each kata, the newest ones
_SPARK = (9, 36)  # the width of one exercise's bar, its gap included, and the height of the longest


@dataclass(frozen=True)
class Box:
    """A rectangle of a chart."""

    x: float
    y: float
    height: float
    label: str
    filled: bool


def render_page(stats: Stats) -> str:
    """Return the page."""
    environment = templates()
    environment.filters.update(
        clock=clock, count=count, duration=duration, long=_long, page_name=_page_name
    )
    return environment.get_template("statistics.html").render(
        stats=stats,
        solved=sum(level.solved for level in stats.levels),
        katas=sum(level.katas for level in stats.levels),
        weeks=_WEEKS,
        cell=_CELL,
        calendar=_calendar(stats.days, stats.today),
        spark=_SPARK,
        times=[
            (times.kata, times.timings[-_TIMINGS:], _bars(times.timings[-_TIMINGS:]))
            for times in stats.times
        ],
        missed=stats.missed[:_BUGS],
    )


def _calendar(days: Sequence[date], today: date) -> list[Box]:
    """Return a cell for each day of the last weeks, a column a week, Monday on top."""
    first = today - timedelta(days=today.weekday(), weeks=_WEEKS - 1)
    return [
        Box(
            _CELL * (number // 7),
            _CELL * (number % 7),
            _CELL,
            _long(day) + (", practised" if day in days else ""),
            day in days,
        )
        for number in range((today - first).days + 1)
        for day in [first + timedelta(days=number)]
    ]


def _bars(timings: Sequence[Timing]) -> list[Box]:
    width, height = _SPARK
    longest = max(timing.seconds for timing in timings) or 1
    bars = []
    for number, timing in enumerate(timings):
        tall = max(2, height * timing.seconds / longest)
        label = clock(timing.seconds) + ("" if timing.solved else ", not solved")
        bars.append(Box(width * number, height - tall, tall, label, timing.solved))
    return bars


def _long(day: date) -> str:
    return f"{day.day} {day:%B %Y}"


def _page_name(link: str) -> str:
    """Return a link as a person would name it: without its scheme and the usual site."""
    return link.removeprefix("https://").removeprefix("github.com/")
