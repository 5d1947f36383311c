"""Times the loop from save to verdict beside the tools that people would use in its place.

Everything runs in a copy of the project, so that nobody's file is touched.
"""

import fcntl
import os
import pty
import re
import sqlite3
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dojo.errors import DojoError
from dojo.kata import kata_toml
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.pool import Pool, runner_pool
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Reference
from dojo.testrun.limits import Limits
from dojo.testrun.results import Verdict
from dojo.verification.bugs import BUG_SEEDS, REFERENCE_SEEDS, verify
from dojo.verification.mutation import judging

SAVES = 11
SOAK_RUNS = 1_000
_COSMIC_RAY_SECONDS = 40
_PATIENCE_SECONDS = 60
_PAUSE_SECONDS = 1.0  # between saves, since pytest-watcher loses one that comes during a run

_COSMIC_RAY = """
[cosmic-ray]
module-path = "{module}"
timeout = 60.0
excluded-modules = []
test-command = "{python} -m pytest -q {folder} --impl reference --kata-no-history"

[cosmic-ray.distributor]
name = "local"
"""


@contextmanager
def copied(project: Project, name: str) -> Iterator[tuple[Project, Kata]]:
    """Yield a copy of the project that has one kata, planted with its default bugs."""
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as folder:
        copy = project.copied_to(Path(folder).resolve(), f"katas/{name}")
        kata = kata_toml.load(copy.katas / name)
        kata.botched.write_text(kata.planted_source(kata.default), encoding="utf-8")
        yield copy, kata


def ours_from_save(project: Project, kata: Kata) -> float:
    """Return the median seconds from a save to the verdict of `kata watch`."""
    command = [sys.executable, "-m", "dojo", "watch", kata.name]
    return _from_save(command, project, kata, re.compile(rf"^{kata.name}: .*$".encode(), re.M))


def theirs_from_save(project: Project, kata: Kata) -> float:
    """Return the median seconds from a save to the end of pytest under pytest-watcher."""
    folder = f"katas/{kata.name}"
    # Its own pattern, *.py, matches no path that has a folder in it since watchdog 7.
    watcher = [sys.executable, "-m", "pytest_watcher", "--now", "--patterns", "**/*.py", folder]
    command = [*watcher, folder, "-q"]
    return _from_save(command, project, kata, re.compile(rb"(passed|failed).* in [\d.]+s"))


def _from_save(
    command: list[str], project: Project, kata: Kata, verdict: "re.Pattern[bytes]"
) -> float:
    """Run a watcher, save again and again, and wait for its verdicts."""
    text = kata.botched.read_text(encoding="utf-8")
    with _in_terminal(command, project) as controller:
        _wait_for(controller, verdict)  # its first run
        seconds = []
        for number in range(SAVES):
            time.sleep(_PAUSE_SECONDS)
            started = time.monotonic()
            kata.botched.write_text(f"{text}\n# {number}\n", encoding="utf-8")
            _wait_for(controller, verdict)
            seconds.append(time.monotonic() - started)
        return median(seconds)


def practice_screen(project: Project, kata: Kata) -> tuple[float, float]:
    """Return the seconds from `kata practice` to its first screen, and from a key to its answer.

    The keys are pressed while tests run: the file under test takes long to load.
    """
    command = [sys.executable, "-m", "dojo", "practice", kata.name]
    started = time.monotonic()
    with _in_terminal(command, project) as controller:
        _wait_for(controller, re.compile(rb"planted"))
        first_screen = time.monotonic() - started
        _wait_for(controller, re.compile(rb"revision"))
        slow = f"import time\ntime.sleep({_PATIENCE_SECONDS})\n"
        kata.botched.write_text(slow, encoding="utf-8")
        _wait_for(controller, re.compile(rb"running"))
        seconds = []
        for _ in range(SAVES):
            time.sleep(0.3)  # a key a time, as a person presses them
            pressed = time.monotonic()
            os.write(controller, b"p")
            _wait_for(controller, re.compile(rb"paused"))
            seconds.append(time.monotonic() - pressed)
            os.write(controller, b"p")
        return first_screen, median(seconds)


@contextmanager
def _in_terminal(command: list[str], project: Project) -> Iterator[int]:
    """Run a command in a terminal of its own; yield what is typed into and read from."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(project.root / "scripts"),
        "TERM": "xterm-256color",
        "NO_COLOR": "1",
    }
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
    try:
        yield controller
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def _wait_for(controller: int, verdict: "re.Pattern[bytes]") -> None:
    seen = b""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not verdict.search(seen):
        if time.monotonic() > deadline:
            raise DojoError(f"no verdict came for {_PATIENCE_SECONDS} s after a save")
        try:
            seen += os.read(controller, 65_536)
        except BlockingIOError:
            time.sleep(0.0005)
        except OSError:
            raise DojoError("a command ended that should have gone on") from None


def ours_per_mutant(project: Project, kata: Kata) -> float:
    """Return the seconds that a mutant takes on one warm runner, its making included."""
    with Runner(project, judging.LIMITS) as runner:
        runner.run(kata, Reference())  # the start is not the loop
        started = time.monotonic()
        judged = list(judging.judge(kata, Pool([runner])))
        return (time.monotonic() - started) / len(judged)


def theirs_per_mutant(project: Project, kata: Kata) -> float:
    """Return the seconds that one of the same mutants takes cosmic-ray itself, cold."""
    folder = f"katas/{kata.name}"
    config, session = project.root / "cosmic-ray.toml", project.root / "session.sqlite"
    config.write_text(
        _COSMIC_RAY.format(python=sys.executable, folder=folder, module=f"{folder}/reference.py")
    )
    tool = [str(Path(sys.executable).parent / "cosmic-ray")]
    files = [config.name, session.name]
    subprocess.run([*tool, "init", *files], cwd=project.root, check=True, capture_output=True)
    started = time.monotonic()
    process = subprocess.Popen(
        [*tool, "exec", *files],
        cwd=project.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout=_COSMIC_RAY_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    seconds = time.monotonic() - started
    with sqlite3.connect(session) as database:
        (done,) = database.execute("SELECT count(*) FROM work_results").fetchone()
    return seconds / max(int(done), 1)


def verify_rate(project: Project, kata: Kata) -> float:
    """Return how many variants `kata verify` runs in a second on a core."""
    with runner_pool(project) as pool:
        list(pool.map(lambda runner, _: runner.run(kata, Reference()), range(pool.size)))
        report = verify(kata, pool, has_gpu=False)
    variants = REFERENCE_SEEDS + BUG_SEEDS * len(report.caught_by) + report.combinations
    return variants / report.seconds / pool.size


@dataclass(frozen=True)
class Growth:
    """What the runner holds more after many runs than before them."""

    runs: int
    files: int
    children: int
    kilobytes: int


def soak(project: Project, kata: Kata, runs: int = SOAK_RUNS) -> Growth:
    """Run the tests many times in a row; needs Linux's /proc."""
    with Runner(project, Limits()) as runner:
        for _ in range(3):
            runner.run(kata)
        before = _held_at_rest()
        for _ in range(runs):
            assert runner.run(kata).verdict is Verdict.FAILED
        after = _held_at_rest()
    files, children, kilobytes = (new - old for new, old in zip(after, before, strict=True))
    return Growth(runs, files, children, kilobytes)


def _held_at_rest() -> tuple[int, int, int]:
    time.sleep(0.2)  # the last run's process is reaped after its answer
    return _held(os.getpid())


def _held(process: int) -> tuple[int, int, int]:
    """Return open files, children (zombies count) and KB in memory of a tree of processes."""
    folder = Path("/proc") / str(process)
    children = (folder / "task" / str(process) / "children").read_text().split()
    pages = int((folder / "statm").read_text().split()[1])
    kilobytes = pages * os.sysconf("SC_PAGE_SIZE") // 1024
    held = [len(list((folder / "fd").iterdir())), len(children), kilobytes]
    for child in children:
        held = [mine + its for mine, its in zip(held, _held(int(child)), strict=True)]
    return held[0], held[1], held[2]
