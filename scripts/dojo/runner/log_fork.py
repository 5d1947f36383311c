"""Runs a system in a fork of the process that calls this, and passes on what it writes."""

import codecs
import os
import select
import signal
import time
from typing import BinaryIO, NoReturn

from dojo.runner import log_worker, worker
from dojo.runner.fork import Fork
from dojo.runner.protocol import END, Answer, LogRequest, Said, Stopped, read_line, send
from dojo.testrun.limits import OUTPUT_BYTES

_LOOK = 0.1  # seconds until an ended process is seen whose end of the pipe others hold


def serve_log(request: LogRequest, requests: int, answers: BinaryIO) -> None:
    """Run the system, send what it writes as it comes, and answer; a cancel ends it."""
    started = time.monotonic()
    fork = _forked(request)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        stopped = None
        while stopped is None and not fork.silent:
            left = max(started + request.run_seconds - time.monotonic(), 0)
            ready, _, _ = select.select([fork.results, requests], [], [], min(left, _LOOK))
            if requests in ready:  # a cancel, or the client is gone
                read_line(requests)
                stopped = Stopped.CANCELLED
            elif not left:
                stopped = Stopped.TIMEOUT
            elif ready:
                fork.read()
                send(answers, Said(decoder.decode(fork.news())).encoded())
                stopped = Stopped.FLOOD if fork.size > OUTPUT_BYTES else None
            else:
                fork.look()
        if stopped is None and not fork.ended:
            time.sleep(_LOOK)  # it has closed its end: let it say itself how it ended
    finally:
        fork.kill()
    status = None if fork.ended else fork.reap()
    fork.finish()
    send(answers, Said(decoder.decode(fork.news(), final=True)).encoded())
    send(answers, Answer(stopped, status, time.monotonic() - started, ()).encoded())
    fork.reap()


class _LogFork(Fork):
    """A process that writes its log, among whatever the code prints."""

    def __init__(self, pid: int, requests: int, results: int) -> None:
        super().__init__(pid, requests, results)
        self._news = b""
        self._last = b""

    def _take(self, chunk: bytes) -> None:
        self._news += chunk
        self._last = (self._last + chunk)[-len(END) :]

    @property
    def ended(self) -> bool:
        return self._last == END

    def news(self) -> bytes:
        """Return what was read since this was last called."""
        news, self._news = self._news, b""
        return news


def _forked(request: LogRequest) -> _LogFork:
    """Return a process that has been asked to run the system."""
    from_parent, to_child = os.pipe()
    from_child, to_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            worker.close_all_but(from_parent, to_parent)
            _run(from_parent, to_parent)
        finally:
            worker.exit_process(70)
    os.close(from_parent)
    os.close(to_parent)
    fork = _LogFork(pid, to_child, from_child)
    fork.ask(request)
    return fork


def _run(requests: int, output: int) -> NoReturn:
    """Take the request, and let all that this process writes go to where its log goes."""
    os.setsid()  # a group of its own: what it leaves running is killed with it
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    line = read_line(requests)
    os.close(requests)
    worker.silence_input()
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    log_worker.write_log(line)
