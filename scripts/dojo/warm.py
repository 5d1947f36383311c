"""The warm process: has torch and pytest imported, and runs each request in a fork of itself.

It reads one JSON object a line from standard input and answers each on standard output; see
`dojo.runner`, its only client. An end of input, or a broken pipe, ends it.
"""

import contextlib
import gc
import json
import os
import select
import signal
import time
from typing import Any, NoReturn

from dojo import child

_PRELOAD = ("numpy.random", "torch.overrides", "dojo.verdict")
_CHUNK = 65_536


def main() -> None:
    """Serve requests until standard input ends."""
    # What an import prints must not end up among the answers.
    answers = child.silenced_output()
    for name in _PRELOAD:
        __import__(name)
    import pytest
    import torch

    # Loads pytest's own plugins and the project's, with their asserts rewritten, and runs nothing.
    pytest.main(["--help", "-pno:cacheprovider"])
    __import__("dojo.testing")
    with contextlib.suppress(pytest.skip.Exception):  # no triton here
        __import__("dojo.kernels")
    # A fork after a parallel region can hang in the thread pool that it did not inherit.
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    wake = _wake_on_child_exit()
    child.say(answers, {"ready": True})
    while line := _read_line(0):
        request = json.loads(line)
        if "cancel" not in request:  # a cancel that came too late
            child.say(answers, _run(request, wake))


def _run(request: dict[str, Any], wake: int) -> dict[str, Any]:
    """Fork, run the request there, and return what came back within the time limit."""
    started = time.monotonic()
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _child(request, send)
    os.close(send)
    received = bytearray()
    ended = None
    deadline = started + request["run_seconds"]
    status = None
    while status is None:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([receive, wake, 0], [], [], max(left, 0))
        if 0 in ready:  # a cancel, or the client is gone
            ended = "cancelled"
            break
        if not ready:
            ended = "timeout"
            break
        if receive in ready:
            chunk = os.read(receive, _CHUNK)
            received += chunk
            if not chunk or received.endswith(child.END):
                break
        if wake in ready:
            os.read(wake, _CHUNK)
            status = _reap(pid, os.WNOHANG)
    _kill_group(pid)
    if status is None:
        status = _reap(pid, 0)
    while select.select([receive], [], [], 0)[0] and (chunk := os.read(receive, _CHUNK)):
        received += chunk
    os.close(receive)
    if ended == "cancelled":
        _read_line(0)
    return {
        "ended": ended,
        "status": status,
        "seconds": time.monotonic() - started,
        "lines": received.decode("utf-8", errors="replace").splitlines(),
    }


def _child(request: dict[str, Any], send: int) -> NoReturn:
    os.setsid()  # a group of its own: what it leaves running is killed with it
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(1, 2)  # a crash prints its trace there; the verdict says what happened
    child.run(request, os.fdopen(send, "w", encoding="utf-8"))


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
    main()
