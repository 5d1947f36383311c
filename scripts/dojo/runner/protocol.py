"""What a runner and its processes say to each other, each message a line of JSON.

A runner sends a `Request`, or `CANCEL` for the one under way, and gets an `Answer`; before it a
`Failure`, if it asked for that. The process that runs the tests says what comes of them in lines
of its own, which the answer holds.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from operator import itemgetter
from typing import Any

from dojo.testrun.results import Outcome, TestResult

CANCEL = b'{"cancel": true}\n'
READY = b'{"ready": true}\n'
END = b'{"end": true}\n'  # the last line of a run that came to its end


@dataclass(frozen=True)
class Request:
    """Tests to run, against which implementation, and what they may take."""

    root: str
    arguments: tuple[str, ...]  # pytest's
    collects: tuple[str, ...]  # files: an edit of any needs the tests to be collected anew
    impl: str
    environment: dict[str, str]
    run_seconds: float
    memory_bytes: int
    seed: int = 0
    only: tuple[str, ...] = ()  # test functions: no others run; all if there are none
    first: tuple[str, ...] = ()  # test functions that run before the others
    wants_failure: bool = False  # whether the first failure is sent at once

    def encoded(self) -> bytes:
        """Return the request as a line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decoded(cls, line: bytes) -> "Request":
        """Return the request that a line holds."""
        facts = json.loads(line)
        lists = {name: tuple(facts[name]) for name in ("arguments", "collects", "only", "first")}
        return cls(**{**facts, **lists})


class Stopped(StrEnum):
    """Why a run was ended from outside."""

    CANCELLED = "cancelled"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Failure:
    """A test that failed in a run that goes on."""

    test: TestResult

    def encoded(self) -> bytes:
        """Return the message as a line."""
        return json.dumps({"failure": self.test.to_json()}).encode() + b"\n"


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
    def of(cls, facts: dict[str, Any]) -> "Answer":
        """Return the answer from its plain data."""
        stopped = Stopped(facts["stopped"]) if facts["stopped"] else None
        return cls(stopped, facts["status"], facts["seconds"], tuple(facts["lines"]))


def reply(line: bytes) -> Failure | Answer:
    """Return what a line holds that comes back for a request."""
    facts = json.loads(line)
    if "failure" in facts:
        return Failure(TestResult.from_json(facts["failure"]))
    return Answer.of(facts)


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
        # In the file's order, whichever ran first.
        tests = sorted((said for said in messages if "test" in said), key=itemgetter("place"))
        return cls(
            tuple(TestResult.from_json(said["test"]) for said in tests),
            tuple(said["problem"] for said in messages if "problem" in said),
            next((said["exit"] for said in messages if "exit" in said), None),
        )


def test_line(result: TestResult, place: int) -> str:
    """Return the line about a test, which stands at this place of its file."""
    return json.dumps({"test": result.to_json(), "place": place}) + "\n"


test_line.__test__ = False  # type: ignore[attr-defined]


def problem_line(text: str) -> str:
    """Return the line that says why tests could not run."""
    return json.dumps({"problem": text}) + "\n"


def exit_line(code: int) -> str:
    """Return the line with pytest's exit code."""
    return json.dumps({"exit": code}) + "\n"


def failure(line: bytes) -> Failure | None:
    """Return the failure that a process's line tells of, if it does."""
    said = _parsed(line.decode("utf-8", errors="replace"))
    test = TestResult.from_json(said["test"]) if "test" in said else None
    return Failure(test) if test and test.outcome is Outcome.FAILED else None


def _parsed(line: str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}
