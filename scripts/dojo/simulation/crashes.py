"""What tests of files that have to outlive a crash share: a process that is killed as it writes.

Each function runs another in a fork of this process and says whether it was killed there. What it
does to memory is lost, what it wrote to disk stays. It must not run a backward pass: beside a GPU,
PyTorch refuses one in a fork.
"""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# Events that change what is on the disk: https://docs.python.org/3/library/audit_events.html
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink"}
_CHANGES |= {"os.truncate", "os.chmod"}


def killed_at_byte(count: int, function: Callable[[], object]) -> bool:
    """Run `function`, killed when a file that it writes would grow beyond `count` bytes."""

    def limit() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and goes on
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))

    return _killed(limit, function)


def killed_before_change(count: int, function: Callable[[], object]) -> bool:
    """Run `function`, killed before the change with this number, from 0, that it makes to a folder.

    Counted are files opened for writing, renamed, removed, linked, and folders made and removed, as
    far as Python does it: a file that C++ opens is not seen.
    """
    seen = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in _CHANGES or (event == "open" and _writes(arguments)):
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    return _killed(lambda: sys.addaudithook(watch), function)


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _killed(prepare: Callable[[], object], function: Callable[[], object]) -> bool:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork, which this system does not have")
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what a fork beside threads may do
        pid = os.fork()
    if pid == 0:
        os.close(reader)
        _run(prepare, function, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, encoding="utf-8") as stream:
            raised = stream.read()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
    if raised:
        pytest.fail(f"the code raised where it was to be killed:\n{raised}", pytrace=False)
    return os.WIFSIGNALED(status)


def _run(prepare: Callable[[], object], function: Callable[[], object], writer: int) -> None:
    """Run it in the child, which ends here."""
    status = 1
    try:
        torch.set_num_threads(1)  # a parallel region would wait for threads that no fork has
        silence = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 the child ends with it
        sys.stdout = sys.stderr = silence
        os.dup2(silence.fileno(), 1)
        os.dup2(silence.fileno(), 2)
        prepare()
        function()
        status = 0
    except BaseException:
        os.write(writer, traceback.format_exc(limit=-1).encode())
    finally:
        os._exit(status)
