"""What a run of a kata's tests says, in plain data: no text is parsed to get it."""

import ast
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from dojo.errors import CatalogueError


class Outcome(StrEnum):
    """How one test ended."""

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    SKIPPED = "skipped"
    TAMPERED = "tampered"  # the code has changed what judges it; a class's submissions alone
    ERROR = "error"  # outside the test's own call: the file did not load, a fixture failed


@dataclass(frozen=True)
class TestResult:
    """One test: its name with parameters, how it ended, and what it said."""

    __test__ = False  # pytest takes a class called Test... for a test

    name: str
    outcome: Outcome
    message: str
    seconds: float  # of processor time
    revision: str = ""  # of the implementation's text that was tested
    raised: bool = False  # an exception ended it, other than an assertion or a warning
    printed: str = ""  # by the code it ran, where it failed; cut to a few lines
    symptom: bool = False  # of a system: it says what a person would notice
    banned: bool = False  # the code calls what its brief bans

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data, for xdist and the runner to send."""
        return {**vars(self), "outcome": str(self.outcome)}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "TestResult":
        """Return the result that `to_json` was made from."""
        return cls(**{**facts, "outcome": Outcome(facts["outcome"])})

    @property
    def function(self) -> str:
        """Return the test's name without its parameters."""
        return self.name.partition("[")[0]


class Verdict(StrEnum):
    """What a run says as a whole."""

    PASSED = "passed"
    FAILED = "failed"  # some test failed by an assertion, an exception or its time limit
    BROKEN = "broken"  # the tests could not run: the file does not load, nothing was collected
    TIMEOUT = "timeout"  # the run as a whole took too long
    CRASHED = "crashed"  # the process ended before the tests did
    DAMAGED = "damaged"  # what says how the tests went is not as they said it
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run: each test's result, and what happened to the run."""

    verdict: Verdict
    tests: tuple[TestResult, ...]
    detail: str
    seconds: float
    revision: str = ""
    seed: int = 0  # of the random data
    running: str = ""  # the test that the run ended in, where it did not come to its end
    strays: int = 0  # processes that the code left running, in a session of their own

    @classmethod
    def of(cls, tests: Sequence[TestResult], seconds: float, seed: int = 0) -> "RunResult":
        """Judge a run whose tests all came to their end."""
        revision = next((test.revision for test in tests if test.revision), "")
        verdict, detail = _judged(tests)
        return cls(verdict, tuple(tests), detail, seconds, revision, seed)

    @property
    def whole(self) -> bool:
        """Say whether the tests ran to the end, so that what passed proves something."""
        return self.verdict in (Verdict.PASSED, Verdict.FAILED)


def failing_functions(results: Iterable[TestResult]) -> set[str]:
    """Return the test functions of which at least one case did not pass."""
    bad = (Outcome.FAILED, Outcome.TIMEOUT, Outcome.TAMPERED, Outcome.ERROR)
    return {result.function for result in results if result.outcome in bad}


def failed_functions(results: Iterable[TestResult]) -> set[str]:
    """Return those that an assertion or an exception ended; a time-out says nothing."""
    return {result.function for result in results if result.outcome is Outcome.FAILED}


def solved(results: Sequence[TestResult]) -> bool:
    """Say whether some test passed and none failed."""
    outcomes = {result.outcome for result in results}
    return Outcome.PASSED in outcomes and outcomes <= {Outcome.PASSED, Outcome.SKIPPED}


def broken(results: Iterable[TestResult]) -> str | None:
    """Return why the tests could not run, or None if they could."""
    return next((r.message for r in results if r.outcome is Outcome.ERROR), None)


def _judged(tests: Sequence[TestResult]) -> tuple[Verdict, str]:
    """Return what tests that all came to their end say together, and why."""
    if reason := broken(tests):
        return Verdict.BROKEN, reason
    bad = (Outcome.FAILED, Outcome.TIMEOUT, Outcome.TAMPERED)
    if first := next((test for test in tests if test.outcome in bad), None):
        return Verdict.FAILED, first.message
    if solved(tests):
        return Verdict.PASSED, ""
    # All skipped is no pass: nothing was shown.
    return Verdict.BROKEN, tests[0].message if tests else "no test ran"


def test_functions(path: Path) -> set[str]:
    """Return the names of the test functions that a test file defines."""
    return set(_read(path))


def check_functions(path: Path) -> set[str]:
    """Return the names of those that are not marked as symptoms."""
    return {name for name, is_symptom in _read(path).items() if not is_symptom}


def _read(path: Path) -> dict[str, bool]:
    try:
        return _tests(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogueError(f"{path}: {error.strerror}") from None
    except SyntaxError as error:
        raise CatalogueError(f"{path}, line {error.lineno}: {error.msg}") from None
    except ValueError as error:
        raise CatalogueError(f"{path}: {error}") from None


@functools.lru_cache(maxsize=8)  # asked for at each hint, each verdict and each pair of bugs
def _tests(source: str) -> dict[str, bool]:
    """Return the names of the test functions, and whether each is a symptom."""
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return {
        node.name: any("mark.symptom" in ast.unparse(mark) for mark in node.decorator_list)
        for node in functions
        if node.name.startswith("test_")
    }


test_functions.__test__ = False  # type: ignore[attr-defined]
