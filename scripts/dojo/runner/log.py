"""The log of a system: its steps, and what it printed among them.

On its way from one process to another each step is a line of JSON behind a record separator
(RFC 7464), so that it can stand among whatever the code prints.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dojo.runner.protocol import END

_MARK = "\x1e"
_LAST = END.decode().rstrip("\n")


@dataclass(frozen=True)
class Step:
    """What a system logged at one step."""

    numbers: dict[str, float]


@dataclass(frozen=True)
class Printed:
    """A line that the code printed."""

    line: str


Event = Step | Printed


@dataclass(frozen=True)
class RunLog:
    """The log of a run, and why it did not come to its end: empty if it did."""

    steps: tuple[dict[str, float], ...]
    failure: str
    seconds: float


def step_line(numbers: dict[str, float]) -> bytes:
    """Return the line for a step."""
    return f"{_MARK}{json.dumps({'step': numbers})}\n".encode()


def ended_line(failure: str) -> bytes:
    """Return the line that ends a log, and says why it ends early if it does."""
    return f"{_MARK}{json.dumps({'ended': failure})}\n".encode()


class LogReader:
    """Puts together what a process writes, which comes in pieces; tells each event at once."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        """Begin with nothing."""
        self.steps: list[dict[str, float]] = []
        self.failure: str | None = None  # none as long as the process has not said how it ended
        self._tell = tell
        self._rest: list[str] = []  # the pieces of a line that is not finished

    def feed(self, text: str) -> None:
        """Take the next piece."""
        first, *others = text.split("\n")
        self._rest.append(first)
        for piece in others:
            self._take_rest()
            self._rest = [piece]

    def close(self) -> None:
        """Tell of a last line that was not finished."""
        if any(self._rest):
            self._take_rest()

    def _take_rest(self) -> None:
        self._take("".join(self._rest))

    def _take(self, line: str) -> None:
        printed, _, record = line.partition(_MARK)
        message = _parsed(record)
        if printed or not message:
            self._print(line if not message else printed)
        if "step" in message:
            self.steps.append(message["step"])
            self._tell(Step(message["step"]))
        if "ended" in message:
            self.failure = message["ended"]

    def _print(self, line: str) -> None:
        if line != _LAST:
            self._tell(Printed(line))


def _parsed(record: str) -> dict[str, Any]:
    """Return what a record holds; nothing if the code has printed something that looks like one."""
    try:
        message = json.loads(record)
    except json.JSONDecodeError:
        return {}
    match message:
        case {"step": dict(numbers)} if all(isinstance(value, float) for value in numbers.values()):
            return {"step": numbers}
        case {"ended": str(failure)}:
            return {"ended": failure}
    return {}
