"""Two ways to get a request run in a process of its own: forked from a warm one, or cold."""

import codecs
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from dojo.errors import DojoError
from dojo.project import Project
from dojo.runner.protocol import (
    CANCEL,
    READY,
    Answer,
    Failure,
    LogRequest,
    Request,
    Said,
    Stopped,
    reply,
)
from dojo.testrun.limits import OUTPUT_BYTES
from dojo.testrun.results import TestResult

Tell = Callable[[TestResult], None]
Hear = Callable[[str], None]  # a piece of what a system's process writes, cut anywhere

_CHUNK = 65_536


class Transport(Protocol):
    """Takes one request at a time."""

    def ask(self, request: Request, tell_failure: Tell) -> Answer:
        """Run the request and return what came of it.

        The first failure is told at once, if the request wants that and this way allows it.
        """

    def follow(self, request: LogRequest, hear: Hear) -> Answer:
        """Run a system, pass on what it writes as it comes, and return how that ended."""

    def cancel(self) -> None:
        """End the request under way, if there is one; from any thread."""

    def close(self) -> None:
        """End every process."""


class Warm:
    """Asks a process that has torch and pytest imported, and forks for every request."""

    def __init__(self, project: Project, imports: Sequence[str] = ()) -> None:
        """Start the process; it gets ready while the caller goes on, with these modules too."""
        self._start = partial(_start, "dojo.runner.forkserver", project, imports)
        self.process = self._start()
        self._ready = False

    def ask(self, request: Request, tell_failure: Tell) -> Answer:
        """Run the request and return what came of it; tell the first failure at once."""
        for said in self._replies(request):
            if isinstance(said, Failure):
                tell_failure(said.test)
            elif isinstance(said, Answer):
                return said
        raise self._anew()

    def follow(self, request: LogRequest, hear: Hear) -> Answer:
        """Run a system, pass on what it writes as it comes, and return how that ended."""
        for said in self._replies(request):
            if isinstance(said, Said):
                hear(said.text)
            elif isinstance(said, Answer):
                return said
        raise self._anew()

    def _replies(self, request: Request | LogRequest) -> Iterator[Failure | Said | Answer]:
        """Send the request, and yield what comes back."""
        if self._ready and self.process.poll() is not None:
            self._anew()  # what an earlier request left running has ended it
        assert self.process.stdout is not None
        if not self._ready:
            if self.process.stdout.readline() != READY:
                raise DojoError("the test runner did not start; scripts/test.sh shows why")
            self._ready = True
        self._send(request.encoded())
        while line := self.process.stdout.readline():
            yield reply(line)

    def _anew(self) -> DojoError:
        """Start the process anew for the next request; return what is to be said of this one."""
        self.process.kill()
        self.close()
        self.process, self._ready = self._start(), False
        return DojoError("the test runner ended unexpectedly; run the command again")

    def cancel(self) -> None:
        """End the request under way, if there is one."""
        with contextlib.suppress(DojoError):
            self._send(CANCEL)

    def close(self) -> None:
        """End the process and its forks: it stops when its input does."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if not self._ready:  # it would import torch to the end first, and has no forks yet
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):  # it died, or was closed by another thread
            raise DojoError("the test runner has ended; run the command again") from None


class Cold:
    """Starts a fresh process for every request."""

    def __init__(self, project: Project) -> None:
        """Start nothing yet."""
        self._project = project
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = threading.Event()

    def ask(self, request: Request, tell_failure: Tell) -> Answer:
        """Run the request and return what came of it; no failure is told before."""
        started = time.monotonic()
        self._cancelled.clear()
        self._process = _start("dojo.runner.worker", self._project, stderr=subprocess.DEVNULL)
        stopped = None
        try:
            output, _ = self._process.communicate(request.encoded(), timeout=request.run_seconds)
        except subprocess.TimeoutExpired:
            stopped = Stopped.TIMEOUT
            self._process.kill()
            output, _ = self._process.communicate()
        return Answer(
            Stopped.CANCELLED if self._cancelled.is_set() else stopped,
            self._process.returncode,
            time.monotonic() - started,
            (tuple(output.decode("utf-8", errors="replace").splitlines()),),
        )

    def follow(self, request: LogRequest, hear: Hear) -> Answer:
        """Run a system, pass on what it writes as it comes, and return how that ended."""
        started = time.monotonic()
        self._cancelled.clear()
        self._process = process = _start("dojo.runner.log_worker", self._project)
        assert process.stdin is not None
        assert process.stdout is not None
        overdue = threading.Timer(request.run_seconds, process.kill)
        overdue.start()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request.encoded())
            process.stdin.close()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        size, flood = 0, False
        while not flood and (chunk := os.read(process.stdout.fileno(), _CHUNK)):
            hear(decoder.decode(chunk))
            size += len(chunk)
            flood = size > OUTPUT_BYTES
        if flood:
            process.kill()
        status = process.wait()
        in_time = overdue.is_alive()
        overdue.cancel()
        process.stdout.close()
        stopped = Stopped.FLOOD if flood else None if in_time else Stopped.TIMEOUT
        return Answer(
            Stopped.CANCELLED if self._cancelled.is_set() else stopped,
            status,
            time.monotonic() - started,
            (),
        )

    def cancel(self) -> None:
        """End the request under way, if there is one."""
        if self._process is not None and self._process.poll() is None:
            self._cancelled.set()
            self._process.kill()

    def close(self) -> None:
        """End the process, if one runs."""
        self.cancel()


def _start(
    module: str, project: Project, arguments: Sequence[str] = (), stderr: int | None = None
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={
            **os.environ,
            "PYTHONPATH": str(project.root / "scripts"),
            # Large pages for the heap: a fork has fewer to copy, and takes half the time.
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        },
        cwd=project.root,
        # Ctrl-C is for the program in front, which ends these by closing their input.
        start_new_session=True,
    )
