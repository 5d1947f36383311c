"""What a runner and its processes say to each other, each message a line of JSON.

A runner sends a `Request`, or `CANCEL` for the one under way, and gets an `Answer`; before it a
`Failure`, if it asked for that. The process that runs the tests says what comes of them in lines
of its own, which the answer holds. For a `LogRequest` all that the process writes comes before
the answer, as it is written, in messages of the kind `Said`.
"""

import json
import os
import signal
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import chain
from operator import itemgetter
from typing import Any, BinaryIO

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
    key: str  # that the processes which run the tests sign by; see `signed`
    seed: int = 0
    only: tuple[str, ...] = ()  # test functions: no others run; all if there are none
    first: tuple[str, ...] = ()  # test functions that run before the others
    until_failure: bool = False  # whether the first failure ends the run
    wants_failure: bool = False  # whether the first failure is sent at once
    processes: int = 1  # how many share out the tests
    part: int = 0  # which of them this one is
    spoilt: bool = False  # whether what the code returns is changed, so that tests have to fail

    def encoded(self) -> bytes:
        """Return the request as a line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decoded(cls, line: bytes) -> "Request":
        """Return the request that a line holds."""
        facts = json.loads(line)
        lists = {name: tuple(facts[name]) for name in ("arguments", "collects", "only", "first")}
        return cls(**{**facts, **lists})


@dataclass(frozen=True)
class LogRequest:
    """A system to run for its log: the file, what `run` is called with, what it may take."""

    root: str
    kata: str
    path: str
    seed: int
    steps: int | None
    step_seconds: float
    run_seconds: float
    memory_bytes: int

    def encoded(self) -> bytes:
        """Return the request as a line."""
        return json.dumps({"log": asdict(self)}).encode() + b"\n"


def asked(line: bytes) -> Request | LogRequest:
    """Return the request that a line holds, of either kind."""
    facts = json.loads(line)
    return LogRequest(**facts["log"]) if "log" in facts else Request.decoded(line)


class Stopped(StrEnum):
    """Why a run was ended from outside."""

    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    FLOOD = "flood"
    DAMAGED = "damaged"  # what came of it is not what was sent


@dataclass(frozen=True)
class Failure:
    """A test that failed in a run that goes on."""

    test: TestResult

    def encoded(self) -> bytes:
        """Return the message as a line."""
        return json.dumps({"failure": self.test.to_json()}).encode() + b"\n"


@dataclass(frozen=True)
class Said:
    """A piece of what a system's process writes, cut anywhere."""

    text: str

    def encoded(self) -> bytes:
        """Return the message as a line."""
        return json.dumps({"said": self.text}).encode() + b"\n"


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    stopped: Stopped | None
    status: int | None  # the exit code of a process that did not run its tests to the end
    seconds: float
    lines: tuple[tuple[str, ...], ...]  # of each process; see `Account`
    strays: int = 0  # processes in a session of their own that were left running

    def encoded(self) -> bytes:
        """Return the answer as a line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Answer":
        """Return the answer from its plain data."""
        stopped = Stopped(facts["stopped"]) if facts["stopped"] else None
        lines = tuple(tuple(said) for said in facts["lines"])
        return cls(stopped, facts["status"], facts["seconds"], lines, facts["strays"])


class Damaged(Exception):
    """What comes back is no message."""


def reply(line: bytes) -> Failure | Said | Answer:
    """Return what a line holds that comes back for a request, or raise `Damaged`."""
    try:
        facts = json.loads(line)
        if "said" in facts:
            return Said(facts["said"])
        if "failure" in facts:
            return Failure(TestResult.from_json(facts["failure"]))
        return Answer.of(facts)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise Damaged from error


@dataclass(frozen=True)
class Account:
    """What the processes that ran the tests said of them."""

    tests: tuple[TestResult, ...]
    problems: tuple[str, ...]  # why tests could not be collected, or pytest itself went wrong
    exit_code: int | None  # pytest's, the worst of them; none if a process ended before
    running: str  # a test in which a process ended; empty if none did

    @classmethod
    def of(cls, lines: Iterable[Iterable[str]]) -> "Account":
        """Read the lines of each process."""
        said = [list(map(json.loads, of_one)) for of_one in lines]
        messages = list(chain.from_iterable(said))
        # In the file's order, whichever ran first.
        tests = sorted((one for one in messages if "test" in one), key=itemgetter("place"))
        codes = [next((one["exit"] for one in of_one if "exit" in one), None) for of_one in said]
        known = [code for code in codes if code is not None]
        return cls(
            tuple(TestResult.from_json(one["test"]) for one in tests),
            tuple(one["problem"] for one in messages if "problem" in one),
            max(known) if len(known) == len(codes) else None,
            next(filter(None, map(_running, said)), ""),
        )


def _running(messages: list[dict[str, Any]]) -> str:
    """Return the test that a process had begun, if it ended in it."""
    last = messages[-1] if messages else {}
    return str(last.get("starts", ""))


def test_line(result: TestResult, place: int) -> str:
    """Return the line about a test, which stands at this place of its file."""
    return json.dumps({"test": result.to_json(), "place": place}) + "\n"


test_line.__test__ = False  # type: ignore[attr-defined]


def start_line(name: str) -> str:
    """Return the line that says which test begins."""
    return json.dumps({"starts": name}) + "\n"


def problem_line(text: str) -> str:
    """Return the line that says why tests could not run."""
    return json.dumps({"problem": text}) + "\n"


def exit_line(code: int) -> str:
    """Return the line with pytest's exit code."""
    return json.dumps({"exit": code}) + "\n"


def failure(line: bytes) -> Failure | None:
    """Return the failure that a process's line tells of, if it does."""
    said = json.loads(line)
    test = TestResult.from_json(said["test"]) if "test" in said else None
    return Failure(test) if test and test.outcome is Outcome.FAILED else None


def send(answers: BinaryIO, line: bytes) -> None:
    """Send a line at once."""
    answers.write(line)
    answers.flush()


def read_line(descriptor: int) -> bytes:
    """Read one line byte by byte: select() does not see what a buffered reader holds back."""
    line = bytearray()
    while byte := os.read(descriptor, 1):
        line += byte
        if byte == b"\n":
            break
    return bytes(line)


def ended(status: int) -> str:
    """Return what the exit code of a process that did not say how it ended means."""
    if status >= 0:
        return f"the process ended itself (exit code {status})"
    name = signal.Signals(-status).name
    crash = ": a crash in C code, or a recursion without end"
    why = {"SIGKILL": ": out of memory?", "SIGSEGV": crash}.get(name, "")
    return f"the process was ended by {name}{why}"
