"""Keeps broken code from taking pytest down with it: endless loops, exits, skips, floods.

These work inside the process, so they also serve plain `pytest`. What they cannot stop (a loop
inside C code, a crash of the interpreter) ends the process; the runner turns that into a verdict.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

from _pytest.outcomes import Exit, Failed, Skipped, XFailed

from dojo.errors import typed
from dojo.testrun.limits import OUTPUT_BYTES
from dojo.testrun.loading import entries

_WAITING = 3  # times as long as its processor time a test may take on the wall


class TimedOut(Failed):
    """The code ran longer than a test may; not an `Exception`, so that no loop swallows it."""


class Exited(Failed):
    """The code tried to end the whole process."""


class Skips(Failed):
    """The code skipped its test, or ended the run without a verdict."""


class NoTerminal(Failed):
    """The code stops in a debugger where nobody can answer."""


class Flooded(Failed):
    """The code printed without end, or wrote a file without end."""


@contextlib.contextmanager
def contained(seconds: float) -> Iterator[None]:
    """Run the block with a time limit, a limit on what it prints, and no way to exit or to skip."""
    with _time_limit(seconds), _output_limit(), _no_exit(), _no_skip():
        yield


def keep_exit_status(status: int) -> None:
    """Let no exit handler that the code has left behind end the process with another status."""
    exit_process = os._exit

    def keep(_: int) -> Any:
        exit_process(status)

    _replace_exit(keep)


def refuse_debugger_without_terminal() -> None:
    """Fail where a debugger would read from nowhere: in a run of our own, or of xdist."""
    if os.path.samestat(os.fstat(0), Path(os.devnull).stat()):
        raise NoTerminal(
            f"a debugger needs a terminal, and none is at hand: use {typed('debug')}",
            pytrace=False,
        )


def lift_time_limit() -> None:
    """Take the time limit off the block under way: a person looks at it in a debugger."""
    for number, timer in _alarms().items():
        # Not off another's alarm, such as that of a plugin for time limits.
        if isinstance(signal.getsignal(number), _Stop):
            signal.setitimer(timer, 0)


def _alarms() -> dict[int, int]:
    """Return the signals of the clocks that run here: processor time, and the one on the wall."""
    if not hasattr(signal, "SIGPROF"):  # Windows
        return {}
    return {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}


class _Stop:
    """Ends what has run too long, unless somebody steps through it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, *_: object) -> None:
        if _debugged():
            lift_time_limit()
            return
        raise TimedOut(f"still running after {self._seconds:g} s: an endless loop?", pytrace=False)


def _debugged() -> bool:
    """Say whether a person follows the code in a debugger, pdb or an editor's."""
    # What newer debuggers use in place of a trace function.
    if sys.version_info >= (3, 12) and sys.monitoring.get_tool(sys.monitoring.DEBUGGER_ID):
        return True
    trace = sys.gettrace()
    # An instance of a class from C, as coverage's fast tracer is, knows no module of its own.
    module = getattr(trace, "__module__", None) or type(trace).__module__
    return trace is not None and not module.startswith("coverage")


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or _debugged():
        yield
        return
    alarms = _alarms()
    previous = {number: signal.signal(number, _Stop(seconds)) for number in alarms}
    for timer in alarms.values():
        # What others do on a busy machine does not count; code that sleeps ends all the same.
        limit = seconds if timer == signal.ITIMER_PROF else _WAITING * seconds
        # Again and again: a bare `except:` in a loop may swallow the first.
        signal.setitimer(timer, limit, 0.1)
    try:
        yield
    finally:
        for number, timer in alarms.items():
            signal.setitimer(timer, 0)
            signal.signal(number, previous[number])


@contextlib.contextmanager
def _output_limit() -> Iterator[None]:
    """Cap files, those that pytest captures output in too; what goes beyond raises `OSError`."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = OUTPUT_BYTES if hard == resource.RLIM_INFINITY else min(OUTPUT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        printed = any(os.fstat(captured).st_size >= limit for captured in (1, 2))
        what = "printed" if printed else "wrote a file of"
        megabytes = limit // 2**20
        raise Flooded(f"the code {what} more than {megabytes} MB", pytrace=False) from None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _no_exit() -> Iterator[None]:
    exit_process, pid = os._exit, os.getpid()

    def refuse(status: int) -> Any:
        if os.getpid() != pid:  # a process that the code forked may end itself
            exit_process(status)
        raise Exited(f"the code called os._exit({status})", pytrace=False)

    _replace_exit(refuse)
    try:
        yield
    finally:
        _replace_exit(exit_process)
        if os.getpid() != pid:  # and if it does not, it may not go on with the tests
            exit_process(1)


def _replace_exit(exit_process: Callable[[int], Any]) -> None:
    for module in (os, sys.modules.get("posix")):
        if module is not None:
            vars(module)["_exit"] = exit_process


# What may skip a test or end a run: tests that need memory or a fork, q in a debugger.
_MAY_SKIP = {"dojo.kernels", "dojo.simulation.crashes", "_pytest.debugging"}


@contextlib.contextmanager
def _no_skip() -> Iterator[None]:
    try:
        yield
    except (Skipped, XFailed, SkipTest, Exit) as error:
        callers = {
            entry.tb_frame.f_globals.get("__name__") for entry in entries(error.__traceback__)
        }
        if callers & _MAY_SKIP:
            raise
        what = "ended the run" if isinstance(error, Exit) else "skipped its test"
        said = f": {error}" if str(error) else ""
        skips = Skips(f"the code {what}{said}", pytrace=False)
        raise skips.with_traceback(error.__traceback__) from None
