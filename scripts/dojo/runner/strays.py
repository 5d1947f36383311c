"""Finds and ends what code under test has started and left running, in a session of its own too.

A process whose parent has ended becomes a child of the nearest process that adopts orphans. That is
Linux's; elsewhere nothing is adopted, and a group that is killed has to do.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_ROUNDS = 100  # each ends a generation: what forks without end must not keep us


def adopt_orphans() -> None:
    """Let this process be the parent of what its descendants leave behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def strays(forks: Collection[int], others: Collection[int] = ()) -> list[int]:
    """Return what runs below these children, or was left to us, in a session of its own.

    `others` are children of ours that have nothing to do with them.
    """
    found, waiting = [], list(forks)
    waiting += [pid for pid in _children(os.getpid()) if pid not in {*forks, *others}]
    while waiting:
        pid = waiting.pop()
        waiting += _children(pid)
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) not in forks:
                found.append(pid)
    return found


def end(pids: Collection[int]) -> None:
    """Kill these processes."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def end_orphans(others: Collection[int] = ()) -> None:
    """Kill and reap every child but those others, and what they leave to us in turn."""
    for _ in range(_ROUNDS):
        orphans = [pid for pid in _children(os.getpid()) if pid not in others]
        if not orphans:
            return
        end(orphans)
        for pid in orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended, or this is no Linux
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found
