"""Runs a command in a terminal of its own, and waits for what it shows there."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dojo.errors import DojoError
from dojo.project import Project

PATIENCE_SECONDS = 60.0
_CHUNK = 65_536


class Terminal:
    """The near end of a terminal: what a command shows is read here, and keys are pressed."""

    def __init__(self, controller: int) -> None:
        """Take the descriptor of the near end, which must not block."""
        self._controller = controller
        self._shown = b""

    def press(self, keys: str) -> None:
        """Type these characters."""
        os.write(self._controller, keys.encode())

    def wait_for(self, what: str, pattern: str) -> str:
        """Wait until the command shows what matches; return all that it showed up to there.

        What was returned once is not looked at again. Where the match does not come, raise
        `DojoError`, which calls it `what`.
        """
        wanted = re.compile(pattern.encode(), re.MULTILINE)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (match := wanted.search(self._shown)):
            # Not by looking again and again: what is timed needs the cores.
            left = max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self._controller], [], [], left)
            if not ready:
                raise DojoError(f"{PATIENCE_SECONDS:g} s went by without {what}")
            try:
                self._shown += os.read(self._controller, _CHUNK)
            except OSError:
                raise DojoError(f"it ended without {what}") from None
        shown, self._shown = self._shown[: match.end()], self._shown[match.end() :]
        return shown.decode(errors="replace")

    def hang_up(self) -> None:
        """Take the terminal away from the command; no more is read or pressed."""
        os.close(self._controller)

    def forget(self) -> None:
        """Leave out of account whatever was shown until now."""
        self._shown = b""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._controller, _CHUNK):
                pass


def start_in_terminal(
    command: Sequence[str], project: Project
) -> tuple[subprocess.Popen[bytes], Terminal]:
    """Start a command at the project's root, in a session and a terminal of its own."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(project.root / "scripts"),
        "TERM": "xterm-256color",
        "NO_COLOR": "1",
    }
    # A caller's own size, which pytest-xdist hands on, would hide this terminal's.
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        command,
        cwd=project.root,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    os.set_blocking(controller, False)
    return process, Terminal(controller)


@contextmanager
def in_terminal(command: Sequence[str], project: Project) -> Iterator[Terminal]:
    """Run a command at the project's root for the length of the block, then kill it."""
    process, terminal = start_in_terminal(command, project)
    try:
        yield terminal
    finally:
        # With what it runs: a run of pytest that is left over would slow the next measurement.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        terminal.hang_up()
