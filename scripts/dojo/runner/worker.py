"""The process that a kata's tests run in: runs pytest and sends structured results.

`dojo.runner.forkserver` forks it from a warm process. Where that is not to be had,
`python -m dojo.runner.worker` is the same from a cold start: one request as JSON on standard
input, results on standard output.
"""

import itertools
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from dojo.runner.protocol import END, Request, exit_line, problem_line, start_line, test_line
from dojo.runner.signed import SignedWriter
from dojo.testrun.device import has_gpu
from dojo.testrun.results import TestResult

# Kept, since the code under test may replace it. It ends the process without Python's own
# farewell, which would wait for threads left running.
exit_process = os._exit

_DESCRIPTORS = 65_536  # beyond any that the package opens


def main() -> None:
    """Run one request from standard input."""
    request = Request.decoded(sys.stdin.buffer.readline())
    silence_input()
    results = Results()
    results.open(silenced_output(), request.key)
    try:
        limit_memory(request.memory_bytes)
        enter(request)
        plugins = [results, _TakingOn(request)]
        results.finish(pytest.main(list(request.arguments), plugins=plugins))
    except BaseException:
        exit_process(70)
    exit_process(0)


def enter(request: Request) -> None:
    """Take on the environment and the folder that the request asks for."""
    os.environ.update(request.environment)
    os.chdir(request.root)


def silenced_output() -> BinaryIO:
    """Return standard output for results, and send what anything else prints to nowhere."""
    results = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    return results


def close_all_but(*kept: int) -> None:
    """Close what this process has inherited, but for standard input and output, and these.

    Code that writes to stray descriptors hurts no other process's pipes.
    """
    for one, next_one in itertools.pairwise(sorted({2, *kept, _DESCRIPTORS})):
        os.closerange(one + 1, next_one)


def silence_input() -> None:
    """Let nothing read standard input, whose other end is a program: a debugger least of all."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


class Results:
    """A pytest plugin that sends each kata test's result as it comes.

    What comes before `open` is kept, and sent then.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.kept: list[str] = []
        self._file: SignedWriter | None = None
        self._places: dict[str, int] = {}

    def open(self, file: BinaryIO, key: str) -> None:
        """Send to this file from now on, signed by this key."""
        self._file = SignedWriter(file, key)
        for line in self.kept:
            self._say(line)

    def finish(self, exit_code: int) -> None:
        """Send pytest's exit code, as the last message."""
        self._say(exit_line(int(exit_code)))
        if self._file is not None:
            self._file.write(END)
            self._file.flush()

    def pytest_collection_finish(self, session: Any) -> None:
        """Note the order of the tests in their file."""
        self._places = {item.nodeid: place for place, item in enumerate(session.items)}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Send which test begins, and with it what the one before it said."""
        self._say(start_line(nodeid.partition("::")[2]))
        if self._file is not None:
            self._file.flush()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Send a test's result."""
        if hasattr(report, "kata"):
            result = TestResult.from_json(report.kata["result"])
            self._say(test_line(result, self._places[report.nodeid]))

    def pytest_collectreport(self, report: Any) -> None:
        """Send why a test file could not be collected, or was skipped."""
        if report.failed:
            self._say(problem_line(str(report.longrepr)))
        elif report.skipped:
            self._say(problem_line(report.longrepr[2].removeprefix("Skipped: ")))

    def pytest_internalerror(self, excrepr: Any) -> None:
        """Send the last line of what went wrong inside pytest."""
        self._say(problem_line(str(excrepr).strip().splitlines()[-1]))

    def _say(self, line: str) -> None:
        if self._file is None:
            self.kept.append(line)
        else:
            self._file.write(line.encode())


def take_on(request: Request, session: Any) -> None:
    """Have a session, whose tests are collected, run what the request asks for."""
    option, items = session.config.option, session.items
    option.impl = request.impl
    option.kata_seed = request.seed
    option.spoilt = request.spoilt
    option.maxfail = int(request.until_failure)
    if request.only:
        items[:] = [item for item in items if item.originalname in request.only]
    items.sort(key=lambda item: item.originalname not in request.first)
    items[:] = items[request.part :: request.processes]


class _TakingOn:
    """A pytest plugin that takes a request on once the places of the tests are noted."""

    def __init__(self, request: Request) -> None:
        self._request = request

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: Any) -> None:
        take_on(self._request, session)


def limit_memory(extra: int) -> None:
    """Cap the address space a bit above what the process has mapped already."""
    statm = Path("/proc/self/statm")
    # Elsewhere RLIMIT_AS is missing, not kept, or cannot be measured. CUDA maps more than it uses.
    if statm.exists() and not has_gpu():
        import resource

        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (mapped + extra, hard))


if __name__ == "__main__":
    main()
