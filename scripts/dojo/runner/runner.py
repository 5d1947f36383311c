"""Runs a kata's tests: warm, isolated, with a verdict whatever the code under test does."""

import json
import os
import secrets
import signal
import threading
from types import TracebackType
from typing import Any

from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.transport import Cold, Transport, Warm
from dojo.testrun.limits import Limits
from dojo.testrun.results import Outcome, RunResult, Status, TestResult, broken, solved


class Runner:
    """Runs tests in processes of their own. One run at a time; `cancel` from any thread."""

    def __init__(
        self, project: Project, limits: Limits | None = None, warm: bool = hasattr(os, "fork")
    ) -> None:
        """Start the warm process; it gets ready while the caller goes on.

        Not `warm`, for where there is no fork: a fresh process for every run, the same results.
        """
        self._project = project
        self._limits = limits or Limits.from_environment()
        self._lock = threading.Lock()
        self._transport: Transport = Warm(project) if warm else Cold(project)

    def __enter__(self) -> "Runner":
        """Return the runner itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes."""
        self.close()

    def run(
        self,
        kata: Kata,
        impl: str = "botched",
        seed: int | None = None,
        *,
        first_failure: bool = False,
    ) -> RunResult:
        """Run the kata's tests against an implementation, which goes by its `--impl`.

        All of them, or until the first failure.
        """
        root = self._project.root
        request = {
            "root": str(root),
            "arguments": [
                str(kata.folder),
                f"--rootdir={root}",
                f"--kata-timeout={self._limits.test_seconds}",
                "--kata-no-history",
                "-q",
                "-pno:cacheprovider",
                # A crash ends in a verdict; its trace would come out among what is shown.
                "-pno:faulthandler",
                *(["--exitfirst"] if first_failure else []),
            ],
            # An edit of any of these needs the tests to be collected anew.
            "collects": [str(kata.tests), str(root / "conftest.py"), str(root / "pyproject.toml")],
            "impl": impl,
            "seed": secrets.randbelow(2**31) if seed is None else seed,
            # Plugins found by entry points cost more than a fast kata's tests.
            "environment": {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            "run_seconds": self._limits.run_seconds,
            "memory_bytes": int(self._limits.memory_gb * 2**30),
        }
        with self._lock:
            answer = self._transport.ask(request)
        return _result(answer, self._limits)

    def cancel(self) -> None:
        """Stop the run that is under way, if there is one; it returns as cancelled."""
        self._transport.cancel()

    def close(self) -> None:
        """End the processes, and whatever they run."""
        self._transport.close()


def _result(answer: dict[str, Any], limits: Limits) -> RunResult:
    messages = [_parse(line) for line in answer["lines"]]
    tests = tuple(
        TestResult.from_json(message["test"]) for message in messages if "test" in message
    )
    problems = [message["problem"] for message in messages if "problem" in message]
    exit_code = next((message["exit"] for message in messages if "exit" in message), None)
    status, detail = _judge(answer, tests, problems, exit_code, limits)
    revision = next((test.revision for test in tests if test.revision), "")
    return RunResult(status, tests, detail, answer["seconds"], revision)


def _judge(
    answer: dict[str, Any],
    tests: tuple[TestResult, ...],
    problems: list[str],
    exit_code: int | None,
    limits: Limits,
) -> tuple[Status, str]:
    if answer["ended"] == "cancelled":
        return Status.CANCELLED, "cancelled"
    if answer["ended"] == "timeout":
        failed = next((test.message for test in tests if test.outcome is Outcome.FAILED), None)
        why = f"; a test had failed: {failed}" if failed else ": an endless loop in C code?"
        return Status.TIMEOUT, f"stopped after {limits.run_seconds:g} s{why}"
    if exit_code is None:
        return Status.CRASHED, _crash(answer["status"])
    if problems:
        return Status.BROKEN, problems[0]
    if reason := broken(tests):
        return Status.BROKEN, reason
    if exit_code == 0 and tests:
        # All skipped is no pass: nothing was shown.
        return (Status.PASSED, "") if solved(tests) else (Status.BROKEN, tests[0].message)
    if exit_code == 1:
        first = next(t for t in tests if t.outcome in (Outcome.FAILED, Outcome.TIMEOUT))
        return Status.FAILED, first.message
    return Status.BROKEN, f"pytest ended with code {exit_code} and ran {len(tests)} tests"


def _crash(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        why = {"SIGKILL": ": out of memory?", "SIGSEGV": ": a crash in C code"}.get(name, "")
        return f"the process was ended by {name}{why}"
    return f"the process ended itself (exit code {status}) before the tests were through"


def _parse(line: str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except json.JSONDecodeError:  # cut off when the process died
        return {}
    return message if isinstance(message, dict) else {}
