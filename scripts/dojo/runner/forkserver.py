"""The warm process: has torch and pytest imported, and runs each request in a fork of itself.

It reads one JSON object a line from standard input and answers each on standard output; see
`dojo.runner.runner`, its only client. An end of input, or a broken pipe, ends it.

Three processes stand in a row. The first imports. It forks a second, which lets pytest collect the
tests of one kata, and serves every request for these; another kata, or an edited test file, gets
another second process. The third is forked for one request and runs the collected tests.
"""

import contextlib
import gc
import os
import select
import signal
import time
from pathlib import Path
from typing import Any, NoReturn, TextIO

import pytest
from _pytest.runner import runtestprotocol

from dojo.files import revision
from dojo.runner import worker
from dojo.runner.protocol import CANCEL, END, READY, Answer, Request, Stopped, failure
from dojo.testrun.loading import load_module

_PRELOAD = ("numpy.random", "torch.overrides", "dojo.pytest_plugin.reporter")
_CHUNK = 65_536
_COLLECTED = b"collected\n"


def main() -> None:
    """Serve requests until standard input ends."""
    # What an import prints must not end up among the answers, and pytest takes descriptor 0.
    answers = worker.silenced_output()
    requests = os.dup(0)
    for name in _PRELOAD:
        __import__(name)
    import torch

    # Loads pytest's own plugins and the project's, with their asserts rewritten, and runs nothing.
    pytest.main(["--help", "-pno:cacheprovider"])
    __import__("dojo.testing")
    with contextlib.suppress(pytest.skip.Exception):  # no triton here
        __import__("dojo.kernels")
    # A fork after a parallel region can hang in the thread pool that it did not inherit.
    torch.set_num_threads(1)
    _do_once()
    gc.collect()
    gc.freeze()
    _send(answers, READY)
    line = _read_line(requests)
    while line:
        # A cancel that came too late is nobody's.
        late = line == CANCEL
        line = _read_line(requests) if late else _delegate(line, requests, answers)


def _do_once() -> None:
    """Do what costs more the first time, so that no run has to: no thread starts for any of it."""
    import torch

    text = b"import torch"
    revision(text)
    load_module(Path(__file__), "once", text)
    few = torch.randn(2, 2)
    torch.isclose(few.softmax(-1), few).all().item()


def _delegate(line: bytes, requests: int, answers: TextIO) -> bytes:
    """Have a fork serve the request and all that are like it; return the first that is not."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _Collector(Request.decoded(line), requests, answers, send).serve()
    os.close(send)
    collected = _read_line(receive)
    unlike = _read_line(receive) if collected else b""
    os.close(receive)
    _, status = os.waitpid(pid, 0)
    if collected:
        return unlike
    # It was stopped while it imported the tests, before it could answer.
    code = os.waitstatus_to_exitcode(status)
    stopped = Stopped.TIMEOUT if code == -signal.SIGALRM else None
    _send(answers, Answer(stopped, code, 0.0, ()).encoded())
    return _read_line(requests)


class _Collector:
    """A pytest plugin that stops between collecting and running, and forks there for requests."""

    def __init__(self, request: Request, requests: int, answers: TextIO, relay: int) -> None:
        self._request = request
        self._kind = _kind(request)
        self._requests = requests
        self._answers = answers
        self._relay = relay
        self._results = worker.Results()
        self._forked = False

    def serve(self) -> NoReturn:
        """Collect, serve, and end the process."""
        try:
            worker.enter(self._request)
            # Ends the process where a test file loops as it is imported.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self._request.run_seconds)
            code = pytest.main(list(self._request.arguments), plugins=[self._results, self])
            self._results.finish(code)
            if not self._forked:
                self._answer_without_running()
        except BaseException:
            worker.exit_process(70)
        worker.exit_process(0)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """End a fork here: what pytest tidies up after this ends with the process anyway."""
        if self._forked:
            self._results.finish(exitstatus)
            worker.exit_process(0)

    def pytest_runtestloop(self, session: Any) -> None:
        """Serve requests here; return, so that the tests run, in the forks alone."""
        self._say_collected()
        for item in session.items:
            item.location  # noqa: B018  # worked out once here, not in every fork
            item.repr_failure = _unprinted
        wake = _wake_on_child_exit()
        gc.collect()
        gc.freeze()
        request: Request | None = self._request
        while request is not None:
            self._run(request, wake, session)
            if self._forked:
                return
            request = self._next()
        worker.exit_process(0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> bool:
        """Run a test as pytest does, and tell only who needs to know: to print it takes time."""
        for report in runtestprotocol(item, log=False, nextitem=nextitem):
            item.session.pytest_runtest_logreport(report)  # counts failures
            self._results.pytest_runtest_logreport(report)
        return True

    def _answer_without_running(self) -> None:
        """Answer where pytest gave up before the tests, then leave the next request to others."""
        self._say_collected()
        answer = Answer(None, 0, 0.0, tuple(self._results.kept))
        _send(self._answers, answer.encoded())
        os.write(self._relay, _read_line(self._requests))

    def _say_collected(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(self._relay, _COLLECTED)

    def _next(self) -> Request | None:
        """Return the next request, or None after passing on one that these tests are not for."""
        while line := _read_line(self._requests):
            if line == CANCEL:  # it came too late
                continue
            request = Request.decoded(line)
            if _kind(request) == self._kind:
                return request
            os.write(self._relay, line)
            break
        return None

    def _run(self, request: Request, wake: int, session: Any) -> None:
        """Fork, run the request there, and answer with what came back within the time limit."""
        started = time.monotonic()
        receive, send = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(receive)
            self._become_child(request, send, session)
            return
        os.close(send)
        received = bytearray()
        failures = _FirstFailure(self._answers if request.wants_failure else None)
        stopped = None
        deadline = started + request.run_seconds
        status = None
        while status is None:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([receive, wake, self._requests], [], [], max(left, 0))
            if self._requests in ready:  # a cancel, or the client is gone
                stopped = Stopped.CANCELLED
                break
            if not ready:
                stopped = Stopped.TIMEOUT
                break
            if receive in ready:
                chunk = os.read(receive, _CHUNK)
                received += chunk
                if not chunk or received.endswith(END):
                    break
                failures.look_at(received)
            if wake in ready:
                os.read(wake, _CHUNK)
                status = _reap(pid, os.WNOHANG)
        _kill_group(pid)
        if status is None and not received.endswith(END):
            status = _reap(pid, 0)
        while select.select([receive], [], [], 0)[0] and (chunk := os.read(receive, _CHUNK)):
            received += chunk
        os.close(receive)
        if stopped is Stopped.CANCELLED:
            _read_line(self._requests)
        lines = received.decode("utf-8", errors="replace").splitlines()
        answer = Answer(stopped, status, time.monotonic() - started, tuple(lines))
        try:
            _send(self._answers, answer.encoded())
        except BrokenPipeError:  # the client was killed: nobody waits for it
            worker.exit_process(0)
        if status is None:  # after the answer: unmapping so large a process takes milliseconds
            _reap(pid, 0)

    def _become_child(self, request: Request, send: int, session: Any) -> None:
        self._forked = True
        os.setsid()  # a group of its own: what it leaves running is killed with it
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._requests)
        os.close(self._relay)
        # Captured output goes to files, which must not be the same as those of other runs.
        config = session.config
        capture = config.pluginmanager.getplugin("capturemanager")
        capture.stop_global_capturing()
        # A debugger that the code calls ends at once, and takes no request from the pipe.
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(1, 2)  # a crash prints its trace there; the verdict says what happened
        capture.start_global_capturing()
        capture.suspend_global_capture()
        config.option.impl = request.impl
        config.option.kata_seed = request.seed
        worker.arrange(session.items, request)
        worker.limit_memory(request.memory_bytes)
        self._results.open(os.fdopen(send, "w", encoding="utf-8"))


class _FirstFailure:
    """Sends the first failure that a run tells of, while the run goes on."""

    def __init__(self, answers: TextIO | None) -> None:
        self._answers = answers  # none once it is sent, or where nobody wants it
        self._looked_at = 0

    def look_at(self, received: bytearray) -> None:
        """Look at the lines that have come since."""
        if self._answers is None:
            return
        end = received.rfind(b"\n") + 1
        lines = bytes(received[self._looked_at : end]).splitlines()
        self._looked_at = end
        if found := next(filter(None, map(failure, lines)), None):
            _send(self._answers, found.encoded())
            self._answers = None


def _unprinted(*_: object, **__: object) -> str:
    """Stand in for pytest's own account of a failure, which costs more than a fast kata's tests."""
    return ""


def _send(answers: TextIO, line: bytes) -> None:
    answers.write(line.decode())
    answers.flush()


def _kind(request: Request) -> object:
    """Return what two requests share that can run from the same collected tests."""
    files = [Path(path) for path in request.collects]
    stats = [path.stat() if path.exists() else None for path in files]
    return request.arguments, [stat and (stat.st_mtime_ns, stat.st_size) for stat in stats]


def _wake_on_child_exit() -> int:
    """Return a file descriptor that becomes readable when a child ends."""
    receive, send = os.pipe()
    os.set_blocking(send, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    return receive


def _kill_group(leader: int) -> None:
    for kill in (os.killpg, os.kill):  # the group is there once the child has called setsid
        try:
            kill(leader, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _reap(pid: int, flags: int) -> int | None:
    ended, status = os.waitpid(pid, flags)
    return os.waitstatus_to_exitcode(status) if ended else None


def _read_line(descriptor: int) -> bytes:
    """Read one line byte by byte: select() does not see what a buffered reader holds back."""
    line = bytearray()
    while byte := os.read(descriptor, 1):
        line += byte
        if byte == b"\n":
            break
    return bytes(line)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the client was killed: nobody is left to answer
        worker.exit_process(0)
