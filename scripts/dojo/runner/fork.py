"""The near end of a process that waits for a request, runs its share of the tests, and ends."""

import contextlib
import os
import select
import signal

from dojo.runner.protocol import END, Failure, LogRequest, Request, failure

_CHUNK = 65_536


class Fork:
    """A forked process, and the pipes to it and from it."""

    def __init__(self, pid: int, requests: int, results: int) -> None:
        """Take what `os.fork` returned, and this process's ends of the pipes."""
        self.pid = pid
        self.results = results
        self._requests = requests
        self._received = bytearray()
        self._looked_at = 0
        self._closed = False
        self._status: int | None = None

    def ask(self, request: Request | LogRequest) -> None:
        """Have the process run a request; one that has died meanwhile will just be silent."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, request.encoded())

    def read(self) -> None:
        """Take in what the process has sent: it has sent something, or closed its end."""
        chunk = os.read(self.results, _CHUNK)
        self._received += chunk
        self._closed = not chunk

    def look(self) -> None:
        """See whether the process has ended; what it left running may hold its end open."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None

    @property
    def size(self) -> int:
        """Return how many bytes the process has sent."""
        return len(self._received)

    @property
    def ended(self) -> bool:
        """Say whether the run came to its end."""
        return self._received.endswith(END)

    @property
    def silent(self) -> bool:
        """Say whether nothing more will come that counts."""
        return self.ended or self._closed or self._status is not None

    def failure(self) -> Failure | None:
        """Return a failure that is told of in what was read since this was last called."""
        end = self._received.rfind(b"\n") + 1
        lines = bytes(self._received[self._looked_at : end]).splitlines()
        self._looked_at = end
        return next(filter(None, map(failure, lines)), None)

    def news(self) -> bytes:
        """Return what was read since this was last called."""
        news = bytes(self._received[self._looked_at :])
        self._looked_at = len(self._received)
        return news

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
        while not self._closed and select.select([self.results], [], [], 0)[0]:
            self.read()
        self.close()

    def lines(self) -> tuple[str, ...]:
        """Return all that the process has said, and close the pipes."""
        self.finish()
        return tuple(self._received.decode("utf-8", errors="replace").splitlines())

    def close(self) -> None:
        """Close the pipes; a process that waits for a request ends."""
        os.close(self._requests)
        os.close(self.results)
