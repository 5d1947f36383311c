"""What healthy runs of a system look like: of each number, at each step, a low and a high.

`kata verify KATA --healthy` records it from the reference, in `healthy.json`. What is compared, in
the file and in a run, are means over the last twentieth of the run: from step to step a loss jumps
about more than most bugs move it. How far outside what healthy runs showed a number may lie is
`Band.spans`:

    At each step, twice the widest range that healthy runs showed nearby: at steps no further off
    than a tenth of the run.

Ten runs say roughly how far apart healthy runs are, and rarely show the farthest. Where all of them
agree, as on a learning rate, nothing but rounding is allowed.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dojo.errors import CatalogueError, DojoError, typed
from dojo.files import read_bytes

_MEAN = 1 / 20  # of the run
_NEARBY = 1 / 10  # of the run, to either side
_WIDENING = 2
_ROUNDING = 1e-4  # of the largest value: another version of torch, another order of a sum

Log = Sequence[Mapping[str, float]]  # the numbers of each step


@dataclass(frozen=True)
class Span:
    """What healthy runs showed of a number at one step, and how far outside it may lie."""

    low: float
    high: float
    margin: float
    agreed: bool  # whether all runs showed the same, here and nearby

    @property
    def floor(self) -> float:
        """Return the lowest value that is not outside."""
        return self.low - self.margin

    @property
    def ceiling(self) -> float:
        """Return the highest value that is not outside."""
        return self.high + self.margin


@dataclass(frozen=True)
class Extent:
    """The lowest and the highest mean of a number at each step.

    None stands where not every run had a finite number: nothing is said of that step.
    """

    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True)
class Band:
    """What healthy runs of a system showed."""

    reference: str  # the revision of the text that ran
    seeds: int
    steps: int
    numbers: dict[str, Extent]

    @classmethod
    def of(cls, logs: Sequence[Log], reference: str) -> "Band":
        """Return what these logs of healthy runs show, or raise if they differ in length."""
        lengths = {len(log) for log in logs}
        if len(lengths) != 1:
            raise DojoError(
                f"healthy runs have from {min(lengths)} to {max(lengths)} steps; "
                "run() has to log as many whatever the seed"
            )
        logs = [means(log, window(len(log))) for log in logs]
        names = dict.fromkeys(name for log in logs for step in log for name in step)
        numbers = {
            name: _extent([[step.get(name) for step in log] for log in logs]) for name in names
        }
        return cls(reference, len(logs), lengths.pop(), numbers)

    def spans(self, name: str) -> list[Span | None]:
        """Return what is healthy of a number at each step; None where nothing is said of it."""
        extent = self.numbers[name]
        seen = list(zip(extent.low, extent.high, strict=True))
        known = [(low, high) for low, high in seen if low is not None and high is not None]
        rounding = _ROUNDING * max((max(abs(low), abs(high)) for low, high in known), default=0.0)
        reach = math.ceil(_NEARBY * self.steps)
        spans: list[Span | None] = []
        for step, (low, high) in enumerate(seen):
            if low is None or high is None:
                spans.append(None)
                continue
            nearby = seen[max(step - reach, 0) : step + reach + 1]
            ranges = [top - least for least, top in nearby if least is not None and top is not None]
            widest = max(ranges)
            spans.append(Span(low, high, max(_WIDENING * widest, rounding), widest <= rounding))
        return spans

    def as_json(self) -> str:
        """Return the text of `healthy.json`: a line a list, so that a change of it can be read."""
        facts = {"reference": self.reference, "seeds": self.seeds, "steps": self.steps}
        lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in facts.items()]
        numbers = [
            f"  {json.dumps(name)}: {{\n"
            f'   "low": {json.dumps(_rounded(extent.low))},\n'
            f'   "high": {json.dumps(_rounded(extent.high))}\n  }}'
            for name, extent in self.numbers.items()
        ]
        return "\n".join(["{", *lines, ' "numbers": {', ",\n".join(numbers), " }", "}", ""])


def window(steps: int) -> int:
    """Return over how many steps means are taken in a run of that many."""
    return max(1, round(_MEAN * steps))


def means(log: Log, size: int) -> list[dict[str, float]]:
    """Return a log with the mean of the last few steps in place of each number.

    A number that is not finite stays as it is, and counts in no mean.
    """
    return [
        {
            name: _mean(near[name] for near in log[max(at - size + 1, 0) : at + 1] if name in near)
            if math.isfinite(value)
            else value
            for name, value in step.items()
        }
        for at, step in enumerate(log)
    ]


def read_band(path: Path) -> Band | None:
    """Return what is recorded, or None where nothing is; raise `CatalogueError` if it is broken."""
    content = read_bytes(path)
    if content is None:
        return None
    try:
        facts = json.loads(content)
        numbers = {
            name: Extent(tuple(extent["low"]), tuple(extent["high"]))
            for name, extent in facts["numbers"].items()
        }
        return Band(facts["reference"], facts["seeds"], facts["steps"], numbers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"{typed('verify', path.parent.name, '--healthy')} records it anew"
        raise CatalogueError(f"{path}: {type(error).__name__}: {error}; {remedy}") from None


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite)


def _extent(runs: Sequence[Sequence[float | None]]) -> Extent:
    low: list[float | None] = []
    high: list[float | None] = []
    for values in zip(*runs, strict=True):
        finite = [value for value in values if value is not None and math.isfinite(value)]
        whole = len(finite) == len(values)
        low.append(min(finite) if whole else None)
        high.append(max(finite) if whole else None)
    return Extent(tuple(low), tuple(high))


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.6g}") for value in values]
