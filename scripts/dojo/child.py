"""The process that a kata's tests run in: runs pytest and sends structured results.

`dojo.warm` forks it from a warm process. Where that is not to be had, `python -m dojo.child` is
the same from a cold start: one request as JSON on standard input, results on standard output.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn, TextIO

from dojo.device import has_gpu

END = b'{"end": true}\n'


def main() -> None:
    """Run one request from standard input."""
    request = json.loads(sys.stdin.readline())
    run(request, silenced_output())


def run(request: dict[str, Any], results: TextIO) -> NoReturn:
    """Run pytest as the request asks, send what comes of it, and end the process.

    It ends without Python's own farewell, which would wait for threads left running.
    """
    exit_process = os._exit
    try:
        _limit_memory(request["memory_bytes"])
        os.environ.update(request["environment"])
        os.chdir(request["root"])
        import pytest

        exit_code = pytest.main(request["arguments"], plugins=[_Sender(results)])
        say(results, {"exit": int(exit_code)})
        results.write(END.decode())
        results.flush()
    except BaseException:
        exit_process(70)
    exit_process(0)


def silenced_output() -> TextIO:
    """Return standard output for results, and send what anything else prints to nowhere."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    return results


def say(file: TextIO, message: dict[str, Any]) -> None:
    """Send one message as a line of JSON."""
    file.write(json.dumps(message) + "\n")
    file.flush()


class _Sender:
    """A pytest plugin that sends each kata test's result as it comes."""

    def __init__(self, results: TextIO) -> None:
        self._results = results

    def pytest_runtest_logreport(self, report: Any) -> None:
        if hasattr(report, "kata"):
            say(self._results, {"test": report.kata["result"]})

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            say(self._results, {"problem": str(report.longrepr)})
        elif report.skipped:
            say(self._results, {"problem": report.longrepr[2].removeprefix("Skipped: ")})

    def pytest_internalerror(self, excrepr: Any) -> None:
        say(self._results, {"problem": str(excrepr).strip().splitlines()[-1]})


def _limit_memory(extra: int) -> None:
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
