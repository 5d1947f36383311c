"""Two ways to get a request run in a process of its own: forked from a warm one, or cold."""

import codecs
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from dojo.errors import DojoError
from dojo.project import Project
from dojo.runner.protocol import (
    CANCEL,
    READY,
    Answer,
    Damaged,
    Failure,
    LogRequest,
    Request,
    Said,
    Stopped,
    reply,
)
from dojo.runner.scratch import environment, make_scratch
from dojo.runner.signed import SignedReader
from dojo.testrun.limits import OUTPUT_BYTES
from dojo.testrun.results import TestResult

Tell = Callable[[TestResult], None]
Hear = Callable[[str], None]  # a piece of what a system's process writes, cut anywhere

_CHUNK = 65_536
_GRACE = 30.0  # seconds that processes may be late beyond the limits that they keep


class Transport(Protocol):
    """Takes one request at a time."""

    @property
    def scratch(self) -> Path:
        """Return the folder for temporary files of runs, which goes with this."""

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

    def __init__(
        self,
        project: Project,
        imports: Sequence[str] = (),
        *,
        command: Sequence[str] = (),
        scratch: Path | None = None,
    ) -> None:
        """Start the process; it gets ready while the caller goes on, with these modules too.

        It is `command` that starts it, where it has to be started in another way, and `scratch`
        the folder for temporary files, where that is not to be a new one.
        """
        self._project = project
        self.scratch = scratch or make_scratch()
        # It removes the folder if this process is killed.
        folder = str(self.scratch)
        self._command = command or _python("dojo.runner.forkserver", folder, *imports)
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self.scratch.mkdir(exist_ok=True)  # a process that ended before has taken it along
        self.process = _start(self._command, self._project, self.scratch)
        self._ready = False

    def ask(self, request: Request, tell_failure: Tell) -> Answer:
        """Run the request and return what came of it; tell the first failure at once."""

        def hear(said: Failure | Said) -> None:
            if isinstance(said, Failure):
                tell_failure(said.test)

        return self._answer(request, hear)

    def follow(self, request: LogRequest, hear: Hear) -> Answer:
        """Run a system, pass on what it writes as it comes, and return how that ended."""

        def hear_said(said: Failure | Said) -> None:
            if isinstance(said, Said):
                hear(said.text)

        return self._answer(request, hear_said)

    def _answer(
        self, request: Request | LogRequest, hear: Callable[[Failure | Said], None]
    ) -> Answer:
        """Send the request, pass on what comes back, and return the answer.

        Where none comes in time, or one that cannot be read, the code has hurt the processes that
        run it: they are started anew.
        """
        self._await_ready()
        started = time.monotonic()
        # The processes keep the limits themselves: collecting the tests and running them.
        overdue = threading.Timer(2 * request.run_seconds + _GRACE, self._kill)
        overdue.start()
        try:
            self._send(request.encoded())
            while True:
                said = self._reply()
                if isinstance(said, Answer):
                    return said
                hear(said)
        except Damaged:
            if self._closed:
                raise DojoError("the test runner was closed") from None
            self._kill()
            self._leave()
            self._begin()
            return Answer(Stopped.DAMAGED, None, time.monotonic() - started, ((),))
        finally:
            overdue.cancel()

    def _await_ready(self) -> None:
        """Wait until the process has imported all; one that has died meanwhile starts anew."""
        if self._ready and not self._closed and self.process.poll() is not None:
            self._leave()
            self._begin()
        assert self.process.stdout is not None
        if not self._ready:
            if self.process.stdout.readline() != READY:
                raise DojoError("the test runner did not start; scripts/test.sh shows why")
            self._ready = True

    def _reply(self) -> Failure | Said | Answer:
        assert self.process.stdout is not None
        return reply(self.process.stdout.readline())

    def _kill(self) -> None:
        """Kill the process and its collector; the forks of this one end themselves."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def cancel(self) -> None:
        """End the request under way, if there is one."""
        with contextlib.suppress(Damaged):
            self._send(CANCEL)

    def close(self) -> None:
        """End the process and its forks: it stops when its input does."""
        self._closed = True
        if not self._ready:  # it would import torch to the end first, and has no forks yet
            self.process.kill()
        self._leave()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _leave(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
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
            raise Damaged from None


class Cold:
    """Starts a fresh process for every request."""

    def __init__(
        self, project: Project, command: Sequence[str] = (), scratch: Path | None = None
    ) -> None:
        """Start nothing yet; `command` and `scratch` are as for a warm process."""
        self._project = project
        self.scratch = scratch or make_scratch()
        self._command = command or _python("dojo.runner.worker")
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = threading.Event()

    def ask(self, request: Request, tell_failure: Tell) -> Answer:
        """Run the request and return what came of it; no failure is told before."""
        reader = SignedReader(request.key)

        def take(piece: bytes) -> bool:
            reader.feed(piece)
            return reader.ended or reader.damaged

        answer = self._answer(self._command, request, take)
        stopped = Stopped.DAMAGED if reader.damaged else answer.stopped
        lines = tuple(line.decode() for line in reader.lines)
        return replace(answer, stopped=stopped, lines=(lines,))

    def follow(self, request: LogRequest, hear: Hear) -> Answer:
        """Run a system, pass on what it writes as it comes, and return how that ended."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        size = 0

        def take(piece: bytes) -> bool:
            nonlocal size
            hear(decoder.decode(piece))
            size += len(piece)
            return size > OUTPUT_BYTES

        answer = self._answer(_python("dojo.runner.log_worker"), request, take)
        return replace(answer, stopped=Stopped.FLOOD) if size > OUTPUT_BYTES else answer

    def _answer(
        self, command: Sequence[str], request: Request | LogRequest, take: Callable[[bytes], bool]
    ) -> Answer:
        """Have the command run the request, and hand over what it writes until that is enough."""
        started = time.monotonic()
        self._cancelled.clear()
        self._process = process = _start(
            command, self._project, self.scratch, stderr=subprocess.DEVNULL
        )
        assert process.stdin is not None
        assert process.stdout is not None
        overdue = threading.Timer(request.run_seconds, process.kill)
        overdue.start()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request.encoded())
            process.stdin.close()
        while piece := os.read(process.stdout.fileno(), _CHUNK):
            if take(piece):
                process.kill()
                break
        status = process.wait()
        in_time = overdue.is_alive()
        overdue.cancel()
        process.stdout.close()
        stopped = None if in_time else Stopped.TIMEOUT
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
        shutil.rmtree(self.scratch, ignore_errors=True)


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _start(
    command: Sequence[str], project: Project, scratch: Path, stderr: int | None = None
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={
            **os.environ,
            **environment(scratch),
            "PYTHONPATH": "scripts",  # of the folder it starts in: a whole path may have a colon
            # Large pages for the heap: a fork has fewer to copy, and takes half the time.
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        },
        cwd=project.root,
        # Ctrl-C is for the program in front, which ends these by closing their input.
        start_new_session=True,
    )
