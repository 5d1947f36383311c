"""Commands and scripted sessions are killed at random moments: nothing is lost, the next one works.

KATA_KILLS says how many sessions are killed; 200 take a quarter of an hour. Of other commands 200
kills hit one that was still alive, which takes two minutes or three.
"""

import json
import os
import random
import re
import signal
import sqlite3
import sys
import threading
import time

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.history.export import export_history
from dojo.history.history import History
from dojo.learner.workspace import Workspace
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


# How many kills hit each: those that start no warm process are soon at their point.
HITS = {
    "reset scale --bugs divides": 40,
    "reset scale --count 1": 30,
    "undo scale": 40,
    "export out.json --force": 20,
    "import in.json": 30,
    "check scale": 10,
    "practice scale --plain --minutes 0.02": 10,
    "prove scale --once": 7,
    "review --count 1": 6,
    "verify scale": 7,
}
_PATIENCE = 20.0


class Command:
    """A command in a fork of this process, which has imported it, so that a kill hits its work."""

    def __init__(self, project, text):
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                os.setsid()
                os.chdir(project.root)
                nothing = os.open(os.devnull, os.O_RDWR)
                output = os.open(project.root / "output", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                for number, name in enumerate(("stdin", "stdout", "stderr")):
                    os.dup2(output if number else nothing, number)
                    stream = os.fdopen(number, "w" if number else "r", closefd=False)
                    setattr(sys, name, stream)
                main(text.split(), obj=project)
            except SystemExit as ending:
                status = ending.code or 0
            finally:
                os._exit(status)
        self._status = None

    def ended(self):
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def wait(self, seconds):
        """Wait until it has ended, or so long; return how long."""
        began = time.monotonic()
        while not self.ended() and time.monotonic() - began < seconds:
            time.sleep(0.0005)
        return time.monotonic() - began

    def kill(self):
        """Kill it; say whether that hit it alive."""
        if self.ended():
            return False
        os.kill(self.pid, signal.SIGKILL)  # not what it started, which has to end by itself
        _, status = os.waitpid(self.pid, 0)
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _check_nothing_is_lost(project, kata, mine, where):
    recorded(project)
    kept = {backup.path.read_text() for backup in Workspace(project, kata).backups()}
    assert mine in {*kept, kata.botched.read_text()}, where
    for name in ("out.json", ".dojo/proofs/01_scale.json"):
        path = project.root / name
        if path.exists():
            json.loads(path.read_text())
    for command in (["hint", "scale"], ["undo", "scale", "--list"]):
        result = CliRunner().invoke(main, command, obj=project)
        assert result.exit_code == 0, f"{where}: {result.output} {result.exception!r}"


@pytest.mark.own_process  # a fork would close the warm process that others are lent
def test_two_hundred_kills_that_hit_a_live_command_lose_nothing(project, kata, history):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    history.start("01_scale", ["divides"])
    (project.root / "in.json").write_text(export_history(history))
    history.close()
    hits = 0
    for text, wanted in HITS.items():
        longest, hit = _PATIENCE, 0
        while hit < wanted:
            where = f"{text}, kill {hit} of seed {seed}"
            mine = f"# {rng.random()}\n"
            kata.botched.write_text(mine)
            command = Command(project, text)
            # The first comes to its end, or waits for saves: it shows how long there is to hit it.
            lasted = command.wait(3.0 if longest == _PATIENCE else rng.uniform(0, longest))
            if longest == _PATIENCE:
                longest = lasted
            hit += command.kill()
            _check_nothing_is_lost(project, kata, mine, where)
        hits += hit
        assert "Traceback" not in (project.root / "output").read_text(), text
    assert hits == sum(HITS.values()) == 200


@pytest.fixture(autouse=True)
def _bare_practice_means_this_kata(project, kata):
    """Begin with a known text, so that a bare `kata practice` plants nothing that was not there."""
    kata.botched.write_text(kata.planted_source(kata.default))
