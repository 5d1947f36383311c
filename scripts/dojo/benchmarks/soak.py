"""Runs the tests many times in a row, and sees what the runner holds on to."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from dojo.errors import DojoError
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.testrun.limits import Limits
from dojo.testrun.results import Verdict

_PROC = Path("/proc")


@dataclass(frozen=True)
class Growth:
    """What the runner holds more after many runs than before them."""

    runs: int
    files: int
    children: int
    kilobytes: int


def soak(project: Project, kata: Kata, runs: int) -> Growth:
    """Run the tests of a planted kata, which have to fail each time; needs Linux's /proc."""
    if not (_PROC / "self" / "smaps_rollup").exists():
        raise DojoError("what a process holds is read from Linux's /proc, and none is here")
    with Runner(project, Limits()) as runner:
        for _ in range(3):
            runner.run(kata)
        before = _held_at_rest()
        for number in range(1, runs + 1):
            result = runner.run(kata)
            if result.verdict is not Verdict.FAILED:
                raise DojoError(
                    f"run {number:,} of {runs:,} should have failed by its tests, "
                    f"and was {result.verdict}: {result.detail or 'no test failed'}"
                )
        after = _held_at_rest()
    files, children, kilobytes = (new - old for new, old in zip(after, before, strict=True))
    return Growth(runs, files, children, kilobytes)


def _held_at_rest() -> tuple[int, int, int]:
    time.sleep(0.2)  # the last run's process is reaped after its answer
    return _held(os.getpid())


def _held(process: int) -> tuple[int, int, int]:
    """Return open files, children (zombies count) and KB in memory of a tree of processes."""
    folder = _PROC / str(process)
    children = (folder / "task" / str(process) / "children").read_text().split()
    # What is shared with a fork counts once.
    lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
    rollup = dict(line.split(":") for line in lines)
    kilobytes = int(rollup["Pss"].split()[0])
    held = [len(list((folder / "fd").iterdir())), len(children), kilobytes]
    for child in children:
        held = [mine + its for mine, its in zip(held, _held(int(child)), strict=True)]
    return held[0], held[1], held[2]
