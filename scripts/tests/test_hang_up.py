"""A terminal that goes away without a signal, as that of a container does."""

import sys

import pytest

pytest.importorskip("pty")

from dojo.benchmarks.terminal import PATIENCE_SECONDS, start_in_terminal

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("command", "last_shown"), [("watch", "q quit"), ("practice", "tests fail")]
)
def test_what_waits_for_keys_ends_with_its_terminal(project, command, last_shown):
    process, terminal = start_in_terminal([sys.executable, "-m", "dojo", command, "scale"], project)
    try:
        terminal.wait_for("its last line", last_shown)
        terminal.hang_up()
        process.wait(PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()
