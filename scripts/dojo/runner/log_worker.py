"""The process that a system runs in for its log: calls its `run`, and writes each step as it comes.

`dojo.runner.log_fork` forks it from a warm process. Where that is not to be had,
`python -m dojo.runner.log_worker` is the same from a cold start: one request on standard input.
"""

import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from _pytest.outcomes import Failed

from dojo.runner import worker
from dojo.runner.log import ended_line, step_line
from dojo.runner.protocol import END, LogRequest, asked
from dojo.testrun.guards import contained
from dojo.testrun.loading import explain_load_error, load_module, place_of
from dojo.testrun.seeding import seed_generators

_FAILURES = (Exception, SystemExit, Failed)
_CHARACTERS = 2_000  # of a failure: a process writes that much to a pipe in one piece
_END = object()


class _Malformed(Exception):
    """What `run` gives is no log; the message says why."""


def main() -> None:
    """Run one system from a cold start."""
    line = sys.stdin.buffer.readline()
    worker.silence_input()
    os.dup2(1, 2)
    write_log(line)


def write_log(line: bytes) -> NoReturn:
    """Run what the request in this line asks for, and end the process.

    The log goes to standard output, among whatever the code prints there and to standard error.
    """
    try:
        request = asked(line)
        assert isinstance(request, LogRequest)
        # Of its own: the code may close standard output, or put something else in its place.
        log = os.dup(1)
        printed = os.fdopen(1, "w", 1, encoding="utf-8", errors="backslashreplace")
        sys.stdout = sys.stderr = printed
        failure = _run(request, log, printed)
        printed.flush()
        os.write(log, ended_line(failure[:_CHARACTERS]) + END)
    except BaseException:
        worker.exit_process(70)
    worker.exit_process(0)


def _run(request: LogRequest, log: int, printed: io.TextIOWrapper) -> str:
    """Write a line a step; return why the run did not come to its end, or nothing if it did."""
    import torch

    torch.set_num_threads(1)
    os.chdir(request.root)
    worker.limit_memory(request.memory_bytes)
    path = Path(request.path)
    try:
        with contained(request.step_seconds):
            run = _loaded(path, request)
    except _Malformed as error:
        return str(error)
    except _FAILURES as error:
        return explain_load_error(error, path)
    step = 0
    try:
        with contained(request.step_seconds):
            numbers = _begun(run, request)
        while True:
            with contained(request.step_seconds):
                given = next(numbers, _END)
                if given is _END:
                    break
                line = step_line(_floats(given))
            printed.flush()
            os.write(log, line)
            step += 1
    except _FAILURES as error:
        return f"step {step + 1}: {_told(error)}"
    return "" if step else "run() ended without logging a step"


def _loaded(path: Path, request: LogRequest) -> Any:
    """Return the `run` of the file."""
    seed_generators(request.seed)
    module = load_module(path, f"kata_{request.kata}_log", path.read_bytes())
    if not hasattr(module, "run"):
        raise _Malformed(f"{path.name} has no 'run', which the brief asks for")
    return module.run


def _begun(run: Any, request: LogRequest) -> Iterator[Any]:
    # A system has generators of its own; one that does not is repeatable all the same.
    seed_generators(request.seed)
    log = run(seed=request.seed, steps=request.steps)
    try:
        return iter(log)
    except TypeError:
        raise _Malformed(f"run() returned {_kind(log)}; it has to yield a dict a step") from None


def _floats(given: Any) -> dict[str, float]:
    """Return a step's numbers, or raise: a person may log a tensor of one element."""
    if not isinstance(given, Mapping):
        raise _Malformed(f"run() yields {_kind(given)}; it has to be a dict of numbers")
    numbers = {}
    for name, value in given.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise _Malformed(f"{name!r} is {_kind(value)}; it has to be a number") from None
    return numbers


def _kind(value: object) -> str:
    shape = getattr(value, "shape", None)
    of_shape = "" if shape is None else f" of shape {tuple(shape)}"
    return f"{type(value).__name__}{of_shape}"


def _told(error: BaseException) -> str:
    text, place = str(error), place_of(error)
    if isinstance(error, _Malformed):
        return text
    if isinstance(error, Failed):
        return f"{text}{place}"
    return f"{type(error).__name__}{place}: {text}"


if __name__ == "__main__":
    main()
