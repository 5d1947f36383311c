"""What a runner and its processes say to each other, each message a line of JSON.

A runner sends a `Request`, or `CANCEL` for the one under way, and gets an `Answer`. The process
that runs the tests says what comes of them in lines of its own, which the answer holds.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from dojo.testrun.results import TestResult

CANCEL = b'{"cancel": true}\n'
READY = b'{"ready": true}\n'
END = b'{"end": true}\n'  # the last line of a run that came to its end


@dataclass(frozen=True)
class Request:
    """Tests to run, against which implementation, and what they may take."""

    root: str
    arguments: tuple[str, ...]  # pytest's
    collects: tuple[str, ...]  # files: an edit of any needs the tests to be collected anew
    only: tuple[str, ...]  # test functions: no others run; all if there are none
    impl: str
    seed: int
    environment: dict[str, str]
    run_seconds: float
    memory_bytes: int

    def encoded(self) -> bytes:
        """Return the request as a line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decoded(cls, line: bytes) -> "Request":
        """Return the request that a line holds."""
        facts = json.loads(line)
        lists = {name: tuple(facts[name]) for name in ("arguments", "collects", "only")}
        return cls(**{**facts, **lists})


class Stopped(StrEnum):
    """Why a run was ended from outside."""

    CANCELLED = "cancelled"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    stopped: Stopped | None
    status: int | None  # the exit code of the process that ran the tests, if it was waited for
    seconds: float
    lines: tuple[str, ...]  # see `Account`

    def encoded(self) -> bytes:
        """Return the answer as a line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decoded(cls, line: bytes) -> "Answer":
        """Return the answer that a line holds."""
        facts = json.loads(line)
        stopped = Stopped(facts["stopped"]) if facts["stopped"] else None
        return cls(stopped, facts["status"], facts["seconds"], tuple(facts["lines"]))


@dataclass(frozen=True)
class Account:
    """What the process that ran the tests said of them."""

    tests: tuple[TestResult, ...]
    problems: tuple[str, ...]  # why tests could not be collected, or pytest itself went wrong
    exit_code: int | None  # pytest's; none if the process ended before

    @classmethod
    def of(cls, lines: Iterable[str]) -> "Account":
        """Read the lines; one that was cut off as the process died is left out."""
        messages = list(map(_parsed, lines))
        return cls(
            tuple(TestResult.from_json(said["test"]) for said in messages if "test" in said),
            tuple(said["problem"] for said in messages if "problem" in said),
            next((said["exit"] for said in messages if "exit" in said), None),
        )


def test_line(result: TestResult) -> str:
    """Return the line about a test."""
    return json.dumps({"test": result.to_json()}) + "\n"


test_line.__test__ = False  # type: ignore[attr-defined]


def problem_line(text: str) -> str:
    """Return the line that says why tests could not run."""
    return json.dumps({"problem": text}) + "\n"


def exit_line(code: int) -> str:
    """Return the line with pytest's exit code."""
    return json.dumps({"exit": code}) + "\n"


def _parsed(line: str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}
