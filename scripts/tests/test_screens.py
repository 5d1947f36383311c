"""The full-screen session, led by Textual's pilot: keys in, what is on the screen out."""

import asyncio
import subprocess
import sys
import threading

import pytest
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from dojo.files import revision
from dojo.history.history import History
from dojo.history.sessions import Ending
from dojo.instruments.probe.facts import Facts, Source
from dojo.learner.watcher import Ran, Tick
from dojo.practice import loop, session
from dojo.practice.planning import Planned
from dojo.practice.stopwatch import Clock
from dojo.runner.runner import Runner as RealRunner
from dojo.testrun.results import Outcome, RunResult, TestResult, Verdict
from dojo.tui.app import PracticeApp
from dojo.tui.debrief import DebriefScreen
from dojo.tui.hunt import HuntScreen


class Runner:
    """Judges a file by its text, at once, or when the test lets it."""

    def __init__(self):
        self.may_end = threading.Event()
        self.may_end.set()

    def run(self, kata, implementation=None, seed=0, **_):
        self.may_end.wait(10)
        text = implementation.source if implementation else kata.botched.read_text()
        solved = "x * factor" in text
        outcome = Outcome.PASSED if solved else Outcome.FAILED
        tests = (
            TestResult(
                "test_scale[2.0]", outcome, "5 times 2.0 is 7.0", 0.01, "abc", printed="x is [5.0]"
            ),
            TestResult("test_shift", Outcome.PASSED, "", 0.01, "abc"),
        )
        verdict = Verdict.PASSED if solved else Verdict.FAILED
        return RunResult(verdict, tests, "", 0.02, revision(text.encode()))

    def cancel(self):
        pass


@pytest.fixture
def runner():
    return Runner()


@pytest.fixture
def begin(project, kata, runner):
    histories = []

    def begin(*budgets, interview=False):
        history = History(project.history)
        histories.append(history)
        planned = [Planned(kata, ("adds-factor",), budget) for budget in budgets]
        practice = session.begin(project, history, planned, interview=interview, interview_on=None)
        return PracticeApp(practice, runner), practice

    yield begin
    for history in histories:
        history.close()


def shown(app):
    """Return the screen as text, as one would read it."""
    lines = app.screen._compositor.render_strips(app.screen.size)
    return "\n".join(line.text for line in lines)


async def wait_for(pilot, text, looks=200):
    for _ in range(looks):
        await pilot.pause(0.02)
        if text in shown(pilot.app):
            return shown(pilot.app)
    raise AssertionError(f"{text!r} is not shown:\n{shown(pilot.app)}")


def lead(app, script, size=(110, 32)):
    """Run the app under a script of keys and checks; return its result."""

    async def run():
        async with app.run_test(size=size) as pilot:
            await script(pilot)
        return app.return_value

    return asyncio.run(run())


def solve(kata):
    kata.botched.write_text(kata.correct_source)


def test_a_kata_from_its_brief_to_the_end_of_the_session(begin, kata):
    app, practice = begin(300.0)

    async def script(pilot):
        screen = await wait_for(pilot, "fails: test_scale")
        assert "The brief of scale." in screen
        assert "01_scale: 1 bug is planted" in screen
        assert "5 times 2.0 is 7.0" in screen
        assert "your code printed:" in screen
        assert "| x is [5.0]" in screen
        await pilot.press("h")
        await wait_for(pilot, "Hint 1 of 3: What does scale do?")
        await pilot.press("d")
        await wait_for(pilot, "nothing yet")
        await pilot.press("d")
        await wait_for(pilot, "fails: test_scale")
        solve(kata)
        end = await wait_for(pilot, "[fixed] Adds the factor")
        assert "2 runs, 1 hint, 90 points of 100" in end
        assert "+    return x * factor" in end
        await pilot.press("enter")

    assert lead(app, script) is True
    assert [item.ending for item in practice.exercises()] == [Ending.SOLVED]
    assert practice._history.sessions.unfinished() is None


def test_a_note_is_written_down_and_its_letters_are_no_keys(begin, kata):
    app, practice = begin(300.0, interview=True)

    async def script(pilot):
        await wait_for(pilot, "01_scale: not yet")
        await pilot.press("n")
        await wait_for(pilot, "What do you suspect, and why?")
        await pilot.press("escape")
        await pilot.press("n", *"squid", "enter")  # s, q and d are keys elsewhere
        await wait_for(pilot, "Noted; the report sets it beside what you did.")
        assert "01_scale: not yet" in shown(app)

    lead(app, script)
    with History(practice._project.history) as history:
        (attempt,) = history.attempts(kata.name)
        assert [move.text for move in history.moves.of(attempt.id)] == ["squid"]


def test_curves_stand_below_the_tests_and_a_probe_in_their_place(
    project, system, history, monkeypatch
):
    practice = session.begin(project, history, [Planned(system, system.default, 600.0)])
    monkeypatch.setattr(loop, "probe", lambda project, kata: Facts(Source.RUN, 3, [], [], []))

    async def script(pilot):
        await wait_for(pilot, "checks fail", looks=1000)  # a runner may have to start
        await wait_for(pilot, "this run", looks=1000)
        await pilot.press("i")
        await wait_for(pilot, "calls no module and no optimiser")
        await pilot.press("i")
        await wait_for(pilot, "this run")

    with RealRunner(project) as runner:
        lead(PracticeApp(practice, runner), script, size=(140, 60))


def test_without_a_terminal_of_its_own_the_debugger_says_what_to_type(begin):
    app, _ = begin(300.0)

    async def script(pilot):
        await wait_for(pilot, "fails: test_scale")
        await pilot.press("b")
        await wait_for(pilot, "type scripts/debug.sh 01_scale there")
        await pilot.press("x")
        await wait_for(pilot, "Other random data from now on.")

    lead(app, script)


def test_skip_and_reveal_ask_first_and_the_next_kata_follows(begin):
    app, practice = begin(300.0, 200.0)

    async def script(pilot):
        await wait_for(pilot, "fails: test_scale")
        await pilot.press("s")
        await wait_for(pilot, "Skip this kata?")
        await pilot.press("n", "r")
        await wait_for(pilot, "Show the answer?")
        await pilot.press("y")
        await wait_for(pilot, "Enter goes on to the next kata")
        await pilot.press("enter")
        await wait_for(pilot, " 3:")  # the next clock
        await pilot.press("s", "y")
        await wait_for(pilot, "skipped")
        await pilot.press("q")

    assert lead(app, script) is True
    assert [item.ending for item in practice.exercises()] == [Ending.REVEALED, Ending.SKIPPED]


def test_quit_leaves_the_session_to_be_taken_up(begin, project):
    app, practice = begin(300.0)

    async def script(pilot):
        await wait_for(pilot, "fails: test_scale")
        await pilot.press("q")

    assert lead(app, script) is False
    assert practice.standing().kata == "01_scale"


def test_what_comes_late_touches_no_session_that_was_left(begin):
    app, practice = begin(300.0)
    hunts = []

    async def script(pilot):
        await wait_for(pilot, "fails: test_scale")
        hunts.append(pilot.app.screen)
        await pilot.press("ctrl+c")

    assert lead(app, script) is False
    left = practice.standing().left
    practice._history.close()
    (hunt,) = hunts
    # On a busy machine a timer may fire, or a run end, while the application closes.
    hunt._take(Tick())
    hunt._take(Ran(Runner().run(hunt._round.kata)))
    assert left < 300


def test_the_clock_runs_out_under_a_question(begin):
    app, practice = begin(1.2)

    async def script(pilot):
        await wait_for(pilot, "fails: test_scale")
        await pilot.press("s")
        await wait_for(pilot, "[missed] Adds the factor")
        assert isinstance(pilot.app.screen, DebriefScreen)

    lead(app, script)
    assert [item.ending for item in practice.exercises()] == [Ending.MISSED]


def test_pause_stops_the_clock_and_a_save_starts_it(begin, kata):
    app, _ = begin(300.0)

    async def script(pilot):
        await wait_for(pilot, "0 of 1 bug fixed")
        await pilot.press("p")
        before = await wait_for(pilot, "paused")
        await pilot.pause(1.2)
        assert shown(pilot.app) == before
        kata.botched.write_text(kata.botched.read_text() + "# more\n")
        for _ in range(100):
            await pilot.pause(0.02)
            if "paused" not in shown(pilot.app):
                return
        raise AssertionError("still paused")

    lead(app, script)


def test_an_interview_names_no_tests_at_first_and_shows_no_answer(begin):
    app, practice = begin(300.0, 200.0, interview=True)

    async def script(pilot):
        screen = await wait_for(pilot, "not yet")
        assert "test_scale" not in screen
        assert "1 of 2" not in screen
        assert "fixed" not in screen
        assert "hint" not in screen
        await pilot.press("h")
        await pilot.press("r", "y")
        end = await wait_for(pilot, "01_scale is over")
        assert "Adds the factor" not in end

    lead(app, script)
    assert practice.debriefs()[0].hints == 0


def test_keys_are_answered_while_tests_run(begin, runner):
    app, _ = begin(300.0)
    runner.may_end.clear()

    async def script(pilot):
        await wait_for(pilot, "running")
        await pilot.press("d")
        await wait_for(pilot, "nothing yet")
        await pilot.press("h")
        assert "running" in await wait_for(pilot, "Hint 1 of 3")
        runner.may_end.set()
        await wait_for(pilot, "fails: test_scale")

    lead(app, script)


def test_the_mouse_presses_the_keys_in_the_footer(begin):
    app, _ = begin(300.0)

    async def script(pilot):
        screen = await wait_for(pilot, " p pause")
        assert await pilot.click(offset=(screen.splitlines()[-1].index("pause"), 31))
        await wait_for(pilot, "paused")

    lead(app, script)


@pytest.fixture
def svg(snapshot):
    class Svg(SingleFileSnapshotExtension):
        file_extension = "svg"
        _write_mode = WriteMode.TEXT

    return snapshot.use_extension(Svg)


@pytest.mark.parametrize("size", [(110, 32), (60, 24)], ids=["wide", "narrow"])
def test_how_it_looks(begin, kata, svg, size, monkeypatch):
    monkeypatch.setattr(session, "Clock", lambda spent, _: Clock(spent, lambda: 0.0))
    app, _ = begin(300.0)
    pictures = {}

    async def script(pilot):
        await wait_for(pilot, "0 of 1 bug fixed")
        await pilot.press("p")
        await pilot.press("h")
        await wait_for(pilot, "Hint 1 of 3")
        assert isinstance(pilot.app.screen, HuntScreen)
        # The path of the checkout is another one at every run.
        pilot.app.screen._note("Edit and save botched.py")
        await pilot.pause()
        pictures["hunt"] = pilot.app.export_screenshot()
        await pilot.press("r", "y")
        await wait_for(pilot, "[missed]")
        pictures["debrief"] = pilot.app.export_screenshot()

    lead(app, script, size)
    for name, picture in pictures.items():
        assert picture == svg(name=name)


def test_help_and_plain_sessions_do_not_import_the_interface(project):
    code = "import sys, dojo.cli.practice_command, dojo.cli.plain; print('textual' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(project.root / "scripts")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == "False"
