"""The process that has the tests of one kata collected, and has them run in forks of itself."""

import gc
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import pytest
import torch
from _pytest.runner import runtestprotocol

from dojo.runner import worker
from dojo.runner.fork import TestFork
from dojo.runner.log_fork import serve_log
from dojo.runner.protocol import (
    CANCEL,
    Answer,
    LogRequest,
    Request,
    Stopped,
    asked,
    read_line,
    send,
)
from dojo.runner.strays import adopt_orphans, end, end_orphans, strays
from dojo.testrun.device import has_gpu

_CHUNK = 65_536
_COLLECTED = b"collected\n"


class Collector:
    """A pytest plugin that stops between collecting and running, and serves requests there.

    Each is run by forks that were made before it came, and that share out its tests.
    """

    def __init__(self, request: Request, requests: int, answers: BinaryIO, relay: int) -> None:
        """Take the first request, where more come from, and where one for others is passed on."""
        self._request = request
        self._kind = _kind(request)
        self._requests = requests
        self._answers = answers
        self._relay = relay
        self._results = worker.Results()
        self._waiting: list[TestFork] = []
        self._wake = -1  # becomes readable when a fork ends
        self._forked = False
        self._rehearsal: pytest.Item | None = None
        self._rehearses = False  # where a person waits: runs in a row would only lose time

    def serve(self) -> NoReturn:
        """Collect, serve, and end the process."""
        try:
            adopt_orphans()
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
        self._rehearsal = _rehearsal(session)
        self._wake = _wake_on_child_exit()
        gc.collect()
        gc.freeze()
        request: Request | None = self._request
        most = 1
        while request is not None:
            if has_gpu():  # what compiles and times kernels there would be in its own way
                request = replace(request, processes=1)
            self._rehearses = request.wants_failure
            self._fork_ahead(request.processes, session)
            if not self._forked:
                self._run(request)
                most = max(most, request.processes)  # what is counted after a run needs fewer
                self._fork_ahead(most, session)
            if self._forked:
                return
            request = self._next()
        worker.exit_process(0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> bool:
        """Run a test as pytest does, and tell only who needs to know: to print it takes time."""
        self._results.pytest_runtest_logstart(item.nodeid)
        for report in runtestprotocol(item, log=False, nextitem=nextitem):
            item.session.pytest_runtest_logreport(report)  # counts failures
            self._results.pytest_runtest_logreport(report)
        return True

    def enclose(self, kept: Iterable[int]) -> None:
        """Shut the fork that this is called in off from others; it keeps these descriptors."""
        worker.close_all_but(*kept)

    def _answer_without_running(self) -> None:
        """Answer where pytest gave up before the tests, then leave the next request to others."""
        self._say_collected()
        send(self._answers, Answer(None, 0, 0.0, (tuple(self._results.kept),)).encoded())
        os.write(self._relay, read_line(self._requests))

    def _say_collected(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(self._relay, _COLLECTED)

    def _next(self) -> Request | None:
        """Return the next request, or None after passing on one that these tests are not for.

        A system's log is no matter of the tests, which stay collected meanwhile.
        """
        while line := read_line(self._requests):
            if line == CANCEL:  # it came too late
                continue
            request = asked(line)
            if isinstance(request, LogRequest):
                serve_log(request, self._requests, self._answers)
                end_orphans(self._pids())
                continue
            if _kind(request) == self._kind:
                return request
            os.write(self._relay, line)
            break
        return None

    def _run(self, request: Request) -> None:
        """Have forks run the request, and answer with what came back within the time limit."""
        started = time.monotonic()
        forks = self._waiting[: request.processes]
        del self._waiting[: request.processes]
        for part, fork in enumerate(forks):
            fork.ask(replace(request, part=part))
        stopped = self._follow(forks, request, started + request.run_seconds)
        left = strays([fork.pid for fork in forks], self._pids())
        for fork in forks:
            fork.kill()
        end(left)
        status = next((fork.reap() for fork in forks if not fork.ended), None)
        if stopped is Stopped.CANCELLED:
            read_line(self._requests)
        lines = tuple(fork.lines() for fork in forks)
        answer = Answer(stopped, status, time.monotonic() - started, lines, len(left))
        try:
            send(self._answers, answer.encoded())
        except BrokenPipeError:  # the client was killed: nobody waits for it
            worker.exit_process(0)
        for fork in forks:  # only now: to unmap so large a process takes milliseconds
            fork.reap()
        end_orphans(self._pids())

    def _pids(self) -> list[int]:
        """Return the forks that wait for a request."""
        return [fork.pid for fork in self._waiting]

    def _follow(self, forks: list[TestFork], request: Request, deadline: float) -> Stopped | None:
        """Take in what the forks say until all are silent; return why they have to stop earlier."""
        tells_failure = request.wants_failure
        while open_ends := {fork.results: fork for fork in forks if not fork.silent}:
            left = max(deadline - time.monotonic(), 0)
            sources = [*open_ends, self._wake, self._requests]
            ready, _, _ = select.select(sources, [], [], left)
            if self._requests in ready:  # a cancel, or the client is gone
                return Stopped.CANCELLED
            if not ready:
                return Stopped.TIMEOUT
            for fork in (open_ends[source] for source in ready if source in open_ends):
                fork.read()
                if fork.damaged:
                    return Stopped.DAMAGED
                if tells_failure and (found := fork.failure()):
                    send(self._answers, found.encoded())
                    tells_failure = False
            if self._wake in ready:
                os.read(self._wake, _CHUNK)
                for fork in forks:
                    fork.look()
        return None

    def _fork_ahead(self, count: int, session: Any) -> None:
        """Have as many forks wait for the next request; in one that has got it, return as forked.

        Then a fork costs nobody any time between a save and its verdict.
        """
        while len(self._waiting) < count and not self._forked:
            from_parent, to_child = os.pipe()
            from_child, to_parent = os.pipe()
            pid = os.fork()
            if pid == 0:
                self._wait_in_fork(from_parent, to_parent, session)
                return
            os.close(from_parent)
            os.close(to_parent)
            self._waiting.append(TestFork(pid, to_child, from_child))

    def _wait_in_fork(self, requests: int, results: int, session: Any) -> None:
        """Make this process ready to run tests, wait for a request, and take it on."""
        self._forked = True
        os.setsid()  # a group of its own: what it leaves running is killed with it
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Captured output goes to files, which must not be the same as those of other runs.
        capture = session.config.pluginmanager.getplugin("capturemanager")
        capture.stop_global_capturing()
        self.enclose((requests, results))
        worker.silence_input()
        os.dup2(1, 2)  # a crash prints its trace there; the verdict says what happened
        capture.start_global_capturing()
        capture.suspend_global_capture()
        if self._rehearses and self._rehearsal is not None:
            runtestprotocol(self._rehearsal, log=False, nextitem=None)
        line = read_line(requests)
        if not line:  # nobody needs this process any more
            worker.exit_process(0)
        os.close(requests)
        request = Request.decoded(line)
        worker.take_on(request, session)
        worker.limit_memory(request.memory_bytes)
        self._results.open(os.fdopen(results, "wb"), request.key)


def _unprinted(*_: object, **__: object) -> str:
    """Stand in for pytest's own account of a failure, which costs more than a fast kata's tests."""
    return ""


def _rehearsal(session: Any) -> pytest.Item | None:
    """Return a test for a process that waits: it gets a copy of each page that any test writes to.

    None where there are no tests, or where it would make a fixture of theirs: that may load the
    code, which nobody has asked for yet.
    """
    if not session.items:
        return None
    module = session.items[0].parent
    item = pytest.Function.from_parent(module, name="rehearsal", callobj=_rehearse)
    return None if item.fixturenames else item


def _rehearse() -> None:
    """Do what most tests do."""
    values = torch.rand(8, 8, dtype=torch.float64, requires_grad=True)
    total = values.exp().log().sum()
    torch.autograd.grad(total, values)
    assert torch.isclose(total.detach(), values.detach().sum()).all()


def _wake_on_child_exit() -> int:
    """Return a file descriptor that becomes readable when a child ends."""
    receive, send = os.pipe()
    os.set_blocking(send, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    return receive


def _kind(request: Request) -> object:
    """Return what two requests share that can run from the same collected tests."""
    files = [Path(path) for path in request.collects]
    stats = [path.stat() if path.exists() else None for path in files]
    return request.arguments, [stat and (stat.st_mtime_ns, stat.st_size) for stat in stats]
