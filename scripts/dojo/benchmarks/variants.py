"""Times how fast mutants and planted bugs are judged, ours and by cosmic-ray itself."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db

from dojo.benchmarks.copies import left_as_found
from dojo.errors import DojoError
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.pool import Pool, runner_pool
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Reference
from dojo.verification.bugs import Verifier
from dojo.verification.mutation import judging

_COSMIC_RAY = """
[cosmic-ray]
module-path = "{module}"
timeout = 60.0
excluded-modules = []
test-command = "{python} -m pytest -q {folder} --impl reference --kata-no-history"

[cosmic-ray.distributor]
name = "local"
"""


def ours_per_mutant(project: Project, kata: Kata) -> float:
    """Return the seconds that a mutant takes on one warm runner, its making included."""
    with Runner(project, judging.LIMITS) as runner:
        runner.run(kata, Reference())  # the start is not the loop
        started = time.monotonic()
        judged = list(judging.judge(kata, Pool([runner])))
        return (time.monotonic() - started) / len(judged)


def cosmic_ray_per_mutant(project: Project, kata: Kata, seconds: float) -> float:
    """Return the seconds that one of the same mutants takes cosmic-ray itself, cold.

    It is stopped after `seconds`, and what it has judged by then counts.
    """
    with left_as_found(project, kata), tempfile.TemporaryDirectory() as folder:
        config, session = Path(folder) / "cosmic-ray.toml", Path(folder) / "session.sqlite"
        tests = f"katas/{kata.name}"
        config.write_text(
            _COSMIC_RAY.format(python=sys.executable, folder=tests, module=f"{tests}/reference.py")
        )
        tool = [str(Path(sys.executable).parent / "cosmic-ray")]
        files = [str(config), str(session)]
        made = subprocess.run(
            [*tool, "init", *files], cwd=project.root, check=False, capture_output=True, text=True
        )
        if made.returncode:
            raise DojoError(f"it made no mutants: {made.stderr.strip().rpartition(chr(10))[2]}")
        started = time.monotonic()
        process = subprocess.Popen(
            [*tool, "exec", *files],
            cwd=project.root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # with the tests that it runs
            process.wait()
        spent = time.monotonic() - started
        with use_db(session, WorkDB.Mode.open) as database:
            done = int(database.num_results)
    if not done:
        raise DojoError(f"it judged no mutant in {spent:.0f} s")
    return spent / done


def verify_rate(project: Project, kata: Kata) -> float:
    """Return how many variants `kata verify` runs in a second on a core."""
    with runner_pool(project) as pool:
        list(pool.map(lambda runner, _: runner.run(kata, Reference()), range(pool.size)))
        findings = Verifier(project, pool).verify(kata)
    if not findings.proof.alone.planted:  # no bug was run
        raise DojoError(f"{kata.name} cannot be verified: {findings.problems[0]}")
    return findings.runs / findings.seconds / pool.size
