"""The loop behind watch and practice, without a terminal, and watch itself through pipes."""

import os
import subprocess
import sys
import threading
import time

import pytest

from dojo.cli.watch_command import _following
from dojo.files import revision
from dojo.learner.counting import Count
from dojo.learner.watcher import Counted, Failed, Key, Ran, Started, Tick, _Saved, watching
from dojo.runner.runner import Runner
from dojo.testrun.results import Outcome, RunResult, TestResult, Verdict


class SlowRunner:
    """Stands in for a runner: a run takes until it is released or cancelled."""

    def __init__(self):
        self.runs = 0
        self.cancelled = 0
        self.fails = []
        self.seeds = set()
        self.release = threading.Event()
        self._cancel = threading.Event()

    def run(self, kata, *, seed, first, tell_failure):
        self.runs += 1
        self.first = first
        self.seeds.add(seed)
        if self.fails:
            tell_failure(self.fails[0])
        self._cancel.clear()
        while not self.release.wait(0.01):
            if self._cancel.is_set():
                return RunResult(Verdict.CANCELLED, (), "cancelled", 0.0)
        if self.fails:
            return RunResult.of(self.fails, 0.0)
        return RunResult(Verdict.PASSED, (), "", 0.0, kata.botched.read_text())

    def cancel(self):
        self.cancelled += 1
        self._cancel.set()


def next_of(kind, events, seconds=10):
    until = time.monotonic() + seconds
    for event in events:
        if isinstance(event, kind):
            return event
        assert time.monotonic() < until, f"no {kind} came"
    raise AssertionError


def test_a_save_during_a_run_cancels_it_and_the_newest_text_is_judged(kata):
    runner = SlowRunner()
    with watching(kata, runner, ()) as watcher:
        events = watcher.events(0.05)
        next_of(object, events)  # the first run has started
        for number in range(3):
            kata.botched.write_text(f"# {number}\n")
            until = time.monotonic() + 5
            while runner.cancelled <= number and time.monotonic() < until:
                next_of(object, events)
        runner.release.set()
        assert next_of(Ran, events).result.revision == "# 2\n"
        assert runner.cancelled >= 3
    assert len(runner.seeds) == 1  # numbers compare from save to save


def test_other_random_data_is_kept_too(kata):
    runner = SlowRunner()
    runner.release.set()
    with watching(kata, runner, ()) as watcher:
        events = watcher.events(0.1)
        next_of(Ran, events)
        watcher.reseed()
        next_of(Ran, events)
        kata.botched.write_text("# new\n")
        next_of(Ran, events)
    assert len(runner.seeds) == 2


def test_keys_come_through_while_tests_run(kata):
    runner = SlowRunner()
    with watching(kata, runner, ()) as watcher:
        events = watcher.events(5)
        next_of(object, events)
        started = time.monotonic()
        watcher.press("h")
        assert next_of(Key, events).character == "h"
        assert time.monotonic() - started < 0.05
        runner.release.set()


@pytest.mark.parametrize("how", ["in place", "renamed", "two writes", "removed first"])
def test_every_way_to_save_gives_one_run(kata, how):
    runner = SlowRunner()
    runner.release.set()
    with watching(kata, runner, ()) as watcher:
        events = watcher.events(0.1)
        next_of(Ran, events)
        time.sleep(0.2)  # the watch has begun
        runs = runner.runs
        if how == "in place":
            kata.botched.write_text("# new\n")
        elif how == "renamed":
            swap = kata.folder / ".botched.swp"
            swap.write_text("# new\n")
            swap.replace(kata.botched)
        elif how == "removed first":
            kata.botched.unlink()
            kata.botched.write_text("# new\n")
        else:
            with kata.botched.open("w") as file:
                file.write("# ")
                file.flush()
                file.write("new\n")
        assert next_of(Ran, events).result.revision == "# new\n"
        for _ in range(8):
            next_of(object, events)
        assert runner.runs == runs + 1


def test_a_failure_comes_before_the_run_has_ended_and_its_test_is_first_in_the_next(kata):
    runner = SlowRunner()
    slow, wrong = (
        TestResult(f"test_{outcome}[1]", outcome, "message", 0.1)
        for outcome in (Outcome.TIMEOUT, Outcome.FAILED)
    )
    runner.fails = [wrong, slow]
    with watching(kata, runner, ()) as watcher:
        events = watcher.events(0.1)
        assert next_of(Failed | Ran, events) == Failed(wrong)
        assert runner.first == set()
        runner.release.set()
        next_of(Ran, events)
        kata.botched.write_text("# new\n")
        next_of(Ran, events)
        assert runner.first == {"test_failed"}


def test_a_failure_of_an_older_text_is_not_shown(kata):
    runner = SlowRunner()
    with watching(kata, runner, ()) as watcher:
        events = watcher.events(0.1)
        next_of(Started, events)
        watcher._happened.put(_Saved())
        watcher._happened.put(Failed(TestResult("test_old", Outcome.FAILED, "", 0.1)))
        runner.release.set()
        assert isinstance(next_of(Failed | Ran, events), Ran)


def test_a_touch_without_a_change_runs_nothing(kata):
    runner = SlowRunner()
    runner.release.set()
    with watching(kata, runner, ()) as watcher:
        events = watcher.events(0.1)
        next_of(Ran, events)
        time.sleep(0.2)
        kata.botched.touch()
        for _ in range(6):
            next_of(object, events)
        assert runner.runs == 1


def test_a_count_follows_a_run_that_failed(kata, runner):
    planted = [kata.bug("adds-factor"), kata.bug("subtracts-offset")]
    both = kata.planted_source([bug.id for bug in planted])
    kata.botched.write_text(both)
    with watching(kata, runner, planted) as watcher:
        events = watcher.events(0.1)
        next_of(Ran, events)
        assert next_of(Counted, events).count == Count(())
        kata.botched.write_text(both.replace("x + factor", "factor * x"))
        next_of(Ran, events)
        assert next_of(Counted, events).count == Count(("adds-factor",))
        kata.botched.write_text(kata.correct_source)
        assert next_of(Ran, events).result.verdict is Verdict.PASSED
        for _ in range(5):
            assert not isinstance(next_of(object, events), Counted)


class SlowCount(SlowRunner):
    """Runs the file at once, and other texts until it is cancelled."""

    def __init__(self):
        super().__init__()
        self.counts = threading.Event()

    def run(self, kata, implementation=None, seed=0, **options):
        if implementation is None:
            self.runs += 1
            content = kata.botched.read_bytes()
            return RunResult(Verdict.FAILED, (), "", 0.0, revision(content))
        self.counts.set()
        self._cancel.wait(10)
        self._cancel.clear()
        return RunResult(Verdict.CANCELLED, (), "cancelled", 0.0)


def test_a_save_ends_a_count(kata):
    planted, runner = [kata.bug("adds-factor")], SlowCount()
    with watching(kata, runner, planted) as watcher:
        events = watcher.events(0.1)
        next_of(Ran, events)
        kata.botched.write_text(kata.correct_source.replace("x * factor", "factor - x"))
        next_of(Ran, events)
        next_of(Tick, events)  # whoever shows the result is done with it
        assert runner.counts.wait(10)
        started = time.monotonic()
        kata.botched.write_text(kata.correct_source.replace("x * factor", "x - factor"))
        next_of(Ran, events)
        assert time.monotonic() - started < 5
        assert (runner.cancelled, runner.runs) == (1, 3)


@pytest.mark.own_process
def test_a_runner_that_dies_is_reported_and_not_waited_for(project, kata):
    from dojo.errors import DojoError

    with Runner(project) as runner:
        runner._transport.process.kill()
        with watching(kata, runner, ()) as watcher, pytest.raises(DojoError, match="test runner"):
            next_of(Ran, watcher.events(0.1))


def test_watch_prints_plain_lines_where_there_is_no_terminal(project, kata):
    environment = {
        **os.environ,
        "PYTHONPATH": str(project.root / "scripts"),
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dojo", "watch", "scale"],
        cwd=project.root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(30, process.kill)
    timer.start()
    try:
        lines = iter(process.stdout)
        assert any("0 of 1 bug fixed" in line for line in lines)
        kata.botched.write_text(kata.correct_source)
        assert any("01_scale: solved" in line for line in lines)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_next_kata_is_the_one_that_follows(project, kata):
    assert _following(project, kata) is None
