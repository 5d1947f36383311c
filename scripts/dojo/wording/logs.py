"""The log of a system as lines: thinned out, numbers aligned, with what the code prints."""

import math
from collections.abc import Iterator, Sequence

from dojo.instruments.curves import Departure, short
from dojo.runner.log import Event, Printed, RunLog
from dojo.testrun.printed import printable
from dojo.wording.quantities import count

_LINES = 20  # about as many steps are shown of a run whose length is known
_PRINTED = 10  # lines that are shown of what one step prints
_DIGITS = 9  # of a number, with its sign, point and exponent


def log_lines(log: RunLog, departures: Sequence[Departure]) -> list[str]:
    """Return in a few lines how the run of a system went beside healthy ones."""
    lines = [f"run: {departure}" for departure in departures]
    if log.failure:
        return [*lines, f"run: stopped at {log.failure}"]
    return lines or ["run: every number like in healthy runs"]


class LogLines:
    """Makes lines of a log as it comes: of the first step, every k-th one and the last."""

    def __init__(self, steps: int | None) -> None:
        """Take how many steps there will be, if that is known."""
        self._every = None if steps is None else max(1, round(steps / _LINES))
        self._step = 0
        self._left: dict[str, float] | None = None  # the last step, as long as it is not shown
        self._names: dict[str, None] = {}  # in the order they first came in
        self._printed = 0

    def lines(self, event: Event) -> Iterator[str]:
        """Yield the lines to show now."""
        if isinstance(event, Printed):
            self._printed += 1
            if self._printed <= _PRINTED:
                yield printable(event.line)
            return
        yield from self._folded()
        self._step += 1
        self._names.update(dict.fromkeys(event.numbers))
        self._left = event.numbers
        if self._step == 1 or self._step % self._stride() == 0:
            yield from self._shown()

    def last(self) -> Iterator[str]:
        """Yield the lines to show once the run has ended."""
        yield from self._folded()
        yield from self._shown()

    def _stride(self) -> int:
        """Return k; where the length is not known, nine steps of each power of ten are shown."""
        return 10 ** int(math.log10(self._step)) if self._every is None else self._every

    def _folded(self) -> Iterator[str]:
        """Yield how much was printed beyond what was shown."""
        if self._printed > _PRINTED:
            yield f"... {count(self._printed - _PRINTED, 'more line')}"
        self._printed = 0

    def _shown(self) -> Iterator[str]:
        numbers, self._left = self._left, None
        if numbers is not None:
            cells = (_cell(name, numbers.get(name)) for name in self._names)
            yield f"step {self._step:>5}  {'  '.join(cells)}".rstrip()


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return " " * (len(name) + 1 + _DIGITS)
    return f"{name} {short(value):>{_DIGITS}}"
