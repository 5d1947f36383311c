"""The near end of a process that waits for a request, serves it, and ends."""

import contextlib
import os
import select
import signal
from abc import ABC, abstractmethod

from dojo.runner.protocol import Failure, LogRequest, Request, failure
from dojo.runner.signed import SignedReader
from dojo.testrun.limits import OUTPUT_BYTES

_CHUNK = 65_536


class Fork(ABC):
    """A forked process, and the pipes to it and from it."""

    def __init__(self, pid: int, requests: int, results: int) -> None:
        """Take what `os.fork` returned, and this process's ends of the pipes."""
        self.pid = pid
        self.results = results
        self.size = 0  # bytes that the process has sent
        self._requests = requests
        self._closed = False
        self._status: int | None = None

    def ask(self, request: Request | LogRequest) -> None:
        """Have the process run a request; one that has died meanwhile will just be silent."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, request.encoded())

    def read(self) -> None:
        """Take in what the process has sent: it has sent something, or closed its end."""
        chunk = os.read(self.results, _CHUNK)
        self._closed = not chunk
        self.size += len(chunk)
        self._take(chunk)

    @abstractmethod
    def _take(self, chunk: bytes) -> None:
        """Take in a piece of what the process has sent."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Say whether the run came to its end."""

    def look(self) -> None:
        """See whether the process has ended; what it left running may hold its end open."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None

    @property
    def silent(self) -> bool:
        """Say whether nothing more will come that counts."""
        return self.ended or self._closed or self._status is not None

    def kill(self) -> None:
        """Kill the process, and what it has started."""
        for kill in (os.killpg, os.kill):  # the group is there once the child has called setsid
            try:
                kill(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue

    def reap(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def finish(self) -> None:
        """Take in what is left of what the process has sent, and close the pipes."""
        # What it has started in a group of its own may go on writing, and without end.
        while not self._closed and self.size <= OUTPUT_BYTES and self._has_more():
            self.read()
        self.close()

    def _has_more(self) -> bool:
        return bool(select.select([self.results], [], [], 0)[0])

    def close(self) -> None:
        """Close the pipes; a process that waits for a request ends."""
        os.close(self._requests)
        os.close(self.results)


class TestFork(Fork):
    """A process that runs tests, and sends signed lines."""

    __test__ = False  # pytest takes a class called Test... for a test

    def __init__(self, pid: int, requests: int, results: int) -> None:
        """Take what `os.fork` returned, and this process's ends of the pipes."""
        super().__init__(pid, requests, results)
        self._reader = SignedReader(key="")
        self._told = 0

    def ask(self, request: Request | LogRequest) -> None:
        """Have the process run a request, and sign by its key."""
        assert isinstance(request, Request)
        self._reader = SignedReader(request.key)
        super().ask(request)

    def _take(self, chunk: bytes) -> None:
        self._reader.feed(chunk)

    @property
    def ended(self) -> bool:
        """Say whether the run came to its end."""
        return self._reader.ended

    @property
    def damaged(self) -> bool:
        """Say whether something came that was not sent as a result."""
        return self._reader.damaged

    def failure(self) -> Failure | None:
        """Return a failure that is told of in what was read since this was last called."""
        lines = self._reader.lines[self._told :]
        self._told = len(self._reader.lines)
        return next(filter(None, map(failure, lines)), None)

    def lines(self) -> tuple[str, ...]:
        """Return all that the process has said, and close the pipes."""
        self.finish()
        return tuple(line.decode() for line in self._reader.lines)
