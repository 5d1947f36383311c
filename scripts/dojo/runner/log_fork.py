"""Runs a system in a fork of the process that calls this, and passes on what it writes."""

import codecs
import os
import select
import signal
import time
from typing import NoReturn, TextIO

from dojo.runner import log_worker, worker
from dojo.runner.fork import Fork
from dojo.runner.protocol import Answer, LogRequest, Said, Stopped, read_line, send
from dojo.testrun.limits import OUTPUT_BYTES

_LOOK = 0.1  # seconds until an ended process is seen whose end of the pipe others hold


def serve_log(request: LogRequest, requests: int, answers: TextIO) -> None:
    """Run the system, send what it writes as it comes, and answer; a cancel ends it."""
    started = time.monotonic()
    fork = _forked(request, requests)
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


def _forked(request: LogRequest, requests: int) -> Fork:
    """Return a process that has been asked to run the system."""
    from_parent, to_child = os.pipe()
    from_child, to_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for end in (requests, to_child, from_child):
                os.close(end)
            _run(from_parent, to_parent)
        finally:
            worker.exit_process(70)
    os.close(from_parent)
    os.close(to_parent)
    fork = Fork(pid, to_child, from_child)
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
