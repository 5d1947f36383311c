"""Runs a module of the package in a process of its own, and returns what it says.

For what runs a learner's file and is no run of its tests. The process has a group of its own, which
is killed with what it has started; its limits on memory and output it sets itself.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from dojo.project import Project


@dataclass(frozen=True)
class Told:
    """What a process said, and how it ended."""

    message: dict[str, Any] | None  # its last line; none if it said nothing that can be read
    status: int  # its exit code; below zero, the signal that ended it
    timed_out: bool
    seconds: float


def ask(project: Project, module: str, request: dict[str, Any], seconds: float) -> Told:
    """Run `python -m MODULE`, which takes the request as JSON and answers so, for that long."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Of the folder it starts in: a whole path may have a colon.
        env={**os.environ, "PYTHONPATH": "scripts"},
        cwd=project.root,
        start_new_session=True,
    )
    timed_out = False
    try:
        output, _ = process.communicate(json.dumps(request).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        timed_out, output = True, b""
    finally:  # also on Ctrl-C
        # The group outlives its first process where that has left others running.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    return Told(_last(output), process.returncode, timed_out, time.monotonic() - started)


def _last(output: bytes) -> dict[str, Any] | None:
    lines = output.splitlines()
    try:
        message = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:  # cut off
        return None
    return message if isinstance(message, dict) else None
