"""Other commands, run beside a hunt on the kata that is hunted in."""

import os
import signal
import subprocess
import sys

from dojo.errors import DojoError
from dojo.project import Project


def show(project: Project, name: str) -> str:
    """Write the page of failed comparisons, and return the line that says where it is.

    Raises `DojoError` where there is nothing to show.
    """
    done = subprocess.run(
        _command("show", name),
        cwd=project.root,
        env=_environment(project),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["the heat maps could not be drawn"]
        raise DojoError(last[0].removeprefix("Error: "))
    return done.stdout.strip()


def debug(project: Project, name: str) -> None:
    """Run the first failing test in the debugger, which has the terminal until it ends."""
    # Ctrl-C is for the debugger. A handler of our own, for it would inherit that all is ignored.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        subprocess.run(
            _command("debug", name), cwd=project.root, env=_environment(project), check=False
        )
    finally:
        signal.signal(signal.SIGINT, before)


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "dojo", *words]


def _environment(project: Project) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(project.root / "scripts")}
