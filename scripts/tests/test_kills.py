"""A scripted session is killed at random moments: what it recorded is there, and it goes on.

KATA_KILLS says how many times; 200 take a quarter of an hour.
"""

import os
import random
import re
import signal
import sqlite3
import threading
import time

import pytest

from dojo.history.history import History
from dojo.practice import session
from dojo.practice.planning import DEFAULT_MINUTES

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KATA_KILLS", "6"))
_BUDGET = 60.0 * DEFAULT_MINUTES
_LONGEST = 4.0  # seconds until the kill: the start, the first runs, and saves in between


class Learner:
    """Practises in a process of its own: saves, asks for hints, and keeps what it was told."""

    def __init__(self, process, kata, rng):
        self.process = process
        self.kata = kata
        self.rng = rng
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def work_until(self, deadline):
        """Save and type at random; return the text saved last, or None."""
        saved = None
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, self.rng.uniform(0.02, 0.3)))
            if not any("Edit and save" in line for line in self.lines):
                continue
            if self.rng.random() < 0.7:
                saved = f"# {self.rng.random()}\n{self.kata.planted_source(('divides',))}"
                self.kata.botched.write_text(saved)
            else:
                self.process.stdin.write(self.rng.choice("hdpp") + "\n")
                self.process.stdin.flush()
        return saved

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        self.process.stdin.close()
        self.process.stdout.close()

    def revisions(self):
        """Return the revisions whose verdicts were shown."""
        text = "".join(self.lines)
        return re.findall(r"left\] revision (\w+), seed \d+\n.*? fixed", text, re.S)


@pytest.fixture
def start(start_practice, kata):
    def start(rng):
        return Learner(start_practice("--plain", start_new_session=True), kata, rng)

    return start


def recorded(project):
    history = sqlite3.connect(project.history)
    assert history.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    runs = [row[0] for row in history.execute("SELECT revision FROM run ORDER BY id")]
    hints = history.execute("SELECT count(*) FROM hint").fetchone()[0]
    history.close()
    return runs, hints


def left(project):
    history = History(project.history)
    try:
        practice = session.unfinished(project, history)
        return practice.standing().left if practice else None
    finally:
        history.close()


def test_a_kill_loses_nothing_but_the_run_in_flight(start, project, kata):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    shown, hints, time_left, text = [], 0, _BUDGET, None
    for number in range(KILLS):
        where = f"kill {number} of seed {seed}"
        learner = start(rng)
        started = time.monotonic()
        saved = learner.work_until(started + rng.uniform(0, _LONGEST))
        learner.kill()
        lasted = time.monotonic() - started
        output = "".join(learner.lines)
        assert "Traceback" not in output, f"{where}: {output}"
        if not project.history.exists():
            continue
        # No history is lost: every verdict and hint that was shown is there.
        shown += learner.revisions()
        hints += output.count("\nHint ")
        runs, kept_hints = recorded(project)
        assert set(shown) <= set(runs), where
        assert kept_hints >= hints, where
        # No text is lost: the file is what was saved last, by this session or an earlier one.
        text = saved or text
        if text is not None:
            assert kata.botched.read_text() == text, where
        # The right time is left: none given back, none lost but what was worked.
        if number and left(project) is not None:
            assert time_left - lasted - 1 <= left(project) <= time_left, where
        time_left = left(project) or _BUDGET
    assert shown or KILLS < 20, "no session lived long enough to show anything"
    stray = [path.name for path in kata.folder.iterdir() if path.name.startswith(".botched")]
    assert len(stray) <= 1, stray


def test_the_killed_session_is_resumed(start):
    learner = start(random.Random(0))
    learner.work_until(time.monotonic() + 4)
    learner.kill()
    again = start(random.Random(1))
    again.work_until(time.monotonic() + 3)
    again.kill()
    assert any("A session is unfinished: 01_scale" in line for line in again.lines)


@pytest.fixture(autouse=True)
def _bare_practice_means_this_kata(project, kata):
    """Begin with a known text, so that a bare `kata practice` plants nothing that was not there."""
    kata.botched.write_text(kata.planted_source(kata.default))
