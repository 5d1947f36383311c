"""A terminal that goes away without a signal, as that of a container does."""

import os
import subprocess
import sys
import time

import pytest

pty = pytest.importorskip("pty")

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 60


def shown(controller: int, wanted: bytes) -> bytes:
    """Read what is shown until it has the wanted text."""
    text, deadline = b"", time.monotonic() + PATIENCE_SECONDS
    while wanted not in text and time.monotonic() < deadline:
        try:
            text += os.read(controller, 65536)
        except BlockingIOError:
            time.sleep(0.05)
    return text


@pytest.mark.parametrize(
    ("command", "last_shown"), [("watch", b"q quit"), ("practice", b"tests fail")]
)
def test_what_waits_for_keys_ends_with_its_terminal(project, command, last_shown):
    controller, terminal = pty.openpty()
    os.set_blocking(controller, False)
    process = subprocess.Popen(
        [sys.executable, "-m", "dojo", command, "scale"],
        cwd=project.root,
        env={
            **os.environ,
            "PYTHONPATH": str(project.root / "scripts"),
            "TERM": "xterm-256color",
        },
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        assert last_shown in shown(controller, last_shown)
        os.close(controller)
        process.wait(PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()
