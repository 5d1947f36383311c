"""The warm process: has torch and pytest imported, and runs each request in a fork of itself.

It reads one JSON object a line from standard input and answers each on standard output; see
`dojo.runner.runner`, its only client. An end of input, or a broken pipe, ends it, and with it goes
the folder of temporary files that its first argument names: whoever made it may have been killed.

Three processes stand in a row. The first imports. It forks a second, which lets pytest collect the
tests of one kata, and serves every request for these; another kata, or an edited test file, gets
another second process. The third, of which there may be several, is forked for one request and
runs the collected tests. A system that runs for its log needs no tests: the first process forks
for it as well as the second.
"""

import contextlib
import gc
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from dojo.files import revision
from dojo.runner import worker
from dojo.runner.collector import Collector
from dojo.runner.log_fork import serve_log
from dojo.runner.protocol import (
    CANCEL,
    READY,
    Answer,
    LogRequest,
    Stopped,
    asked,
    read_line,
    send,
)
from dojo.runner.strays import adopt_orphans, end_orphans
from dojo.testrun.loading import load_module

_PRELOAD = ("numpy.random", "torch.overrides", "dojo.pytest_plugin.reporter")


def main(imports: Sequence[str], collector: type[Collector] = Collector) -> None:
    """Import these modules too, and serve requests until standard input ends."""
    # What an import prints must not end up among the answers, and pytest takes descriptor 0.
    answers = worker.silenced_output()
    requests = os.dup(0)
    for name in (*_PRELOAD, *imports):
        __import__(name)
    import torch

    # Loads pytest's own plugins and the project's, with their asserts rewritten, and runs nothing.
    pytest.main(["--help", "-pno:cacheprovider"])
    __import__("dojo.testing")
    with contextlib.suppress(pytest.skip.Exception):  # no triton here
        __import__("dojo.kernels")
    # A fork after a parallel region can hang in the thread pool that it did not inherit.
    torch.set_num_threads(1)
    adopt_orphans()
    _do_once()
    gc.collect()
    gc.freeze()
    send(answers, READY)
    line = read_line(requests)
    while line:
        # A cancel that came too late is nobody's.
        late = line == CANCEL
        line = read_line(requests) if late else _delegate(line, requests, answers, collector)


def _do_once() -> None:
    """Do what costs more the first time, so that no run has to: no thread starts for any of it."""
    import torch

    text = b"import torch"
    revision(text)
    load_module(Path(__file__), "once", text)
    few = torch.randn(2, 2)
    torch.isclose(few.softmax(-1), few).all().item()
    with contextlib.suppress(pytest.fail.Exception):
        sys.modules["dojo.testing"].assert_matches(few, few + 1, "values that differ")


def _delegate(line: bytes, requests: int, answers: BinaryIO, collector: type[Collector]) -> bytes:
    """Have a fork serve the request and all that are like it; return the first that is not."""
    request = asked(line)
    if isinstance(request, LogRequest):
        serve_log(request, requests, answers)
        end_orphans()
        return read_line(requests)
    receive, relay = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        collector(request, requests, answers, relay).serve()
    os.close(relay)
    collected = read_line(receive)
    unlike = read_line(receive) if collected else b""
    os.close(receive)
    _, status = os.waitpid(pid, 0)
    end_orphans()
    if collected:
        return unlike
    # It was stopped while it imported the tests, before it could answer.
    code = os.waitstatus_to_exitcode(status)
    stopped = Stopped.TIMEOUT if code == -signal.SIGALRM else None
    send(answers, Answer(stopped, code, 0.0, ((),)).encoded())
    return read_line(requests)


if __name__ == "__main__":
    pid = os.getpid()
    try:
        with contextlib.suppress(BrokenPipeError):  # the client was killed: nobody waits
            main(sys.argv[2:])
    finally:
        if os.getpid() == pid:  # a fork that ends this way leaves its parent's folder alone
            shutil.rmtree(sys.argv[1], ignore_errors=True)
