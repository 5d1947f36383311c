"""The debugger opens where the learner's code failed, and nowhere that nobody can answer."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from dojo.benchmarks.terminal import in_terminal
from dojo.cli import main
from dojo.testrun.results import RunResult, Verdict

WRONG = """
def scale(x, factor):
    amount = factor + 40
    return helper(amount)


def helper(amount):
    return int("no number")


def shift(x, offset):
    return x + offset
"""


@pytest.fixture
def debug(project):
    def start(*arguments):
        command = [sys.executable, "-m", "dojo", "debug", "scale", *arguments]
        return in_terminal(command, project)

    return start


def test_pdb_opens_in_the_learners_innermost_frame(debug, kata):
    kata.botched.write_text(WRONG)
    with debug() as terminal:
        shown = terminal.wait_for("a prompt", r"\(Pdb\)")
        assert "01_scale: test_scale[2.0], seed" in shown
        assert '-> return int("no number")' in shown
        terminal.press("up\n")
        terminal.wait_for("its caller", "return helper")
        terminal.press("p amount + 1000\n")
        terminal.wait_for("a value", "1042.0")
        terminal.press("q\n")


def test_pdb_opens_in_the_test_where_the_code_had_returned(debug):
    with debug("test_scale[3.0]") as terminal:
        shown = terminal.wait_for("a prompt", r"\(Pdb\)")
        assert "Your code had returned when the test failed" in shown
        terminal.press("p actual + 1000\n")
        terminal.wait_for("a value", "1008.0")
        terminal.press("q\n")


@pytest.mark.slow
def test_a_breakpoint_stops_in_the_test_that_fails_and_has_all_the_time(debug, kata, monkeypatch):
    monkeypatch.setenv("KATA_TEST_SECONDS", "0.2")
    kata.botched.write_text(
        "def scale(x, factor):\n    breakpoint()\n    return x * factor\n"
        "def shift(x, offset):\n    import time\n    breakpoint()\n    return x - offset\n"
    )
    with debug() as terminal:
        shown = terminal.wait_for("a prompt", r"\(Pdb\)")
        assert "01_scale: test_shift, seed" in shown
        terminal.press("p time.sleep(1), offset + 1000\n")
        terminal.wait_for("a value", "1001.5")
        terminal.press("c\n")
        terminal.wait_for("the failure", "5 plus 1.5 is 3.5")
        terminal.press("q\n")


def test_the_random_data_is_that_of_the_last_run(debug, player):
    player.record(RunResult(Verdict.FAILED, (), "", 0.1, seed=4321))
    with debug("test_scale") as terminal:
        terminal.wait_for("the seed", "01_scale: test_scale, seed 4321;")
        terminal.wait_for("a prompt", r"\(Pdb\)")
        terminal.press("q\n")


@pytest.mark.slow
def test_a_kata_whose_tests_pass_needs_a_name(debug, kata):
    kata.botched.write_text(kata.correct_source)
    with debug() as terminal:
        terminal.wait_for("what to do", "01_scale: no test fails with seed .* name a test:")


def test_an_unknown_test_is_told_with_the_nearest(debug):
    with debug("test_scal") as terminal:
        terminal.wait_for("a name", "01_scale has no test 'test_scal'; did you mean 'test_scale'?")


def test_without_a_terminal_it_says_so(project):
    result = CliRunner().invoke(main, ["debug", "scale"], obj=project)
    assert result.exit_code == 1
    assert "pdb needs a terminal: type scripts/debug.sh 01_scale in one" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["-s"], ["-n", "1"]])
def test_a_breakpoint_where_nobody_can_answer_is_told_by_plain_pytest(run_pytest, kata, options):
    kata.botched.write_text("def scale(x, factor):\n    breakpoint()\n    return x * factor\n")
    result = run_pytest("katas/01_scale", *options, stdin=subprocess.DEVNULL)
    assert result.returncode == 1
    assert "none is at hand: use scripts/debug.sh" in result.stdout


@pytest.mark.slow
def test_a_key_of_watch_hands_the_terminal_to_pdb_and_takes_it_back(project, kata):
    kata.botched.write_text(WRONG)
    with in_terminal([sys.executable, "-m", "dojo", "watch", "scale"], project) as terminal:
        terminal.wait_for("a verdict", "0 of 1 bug fixed")
        terminal.press("b")
        terminal.wait_for("a prompt", r"\(Pdb\)")
        terminal.press("up\n")
        terminal.wait_for("its caller", "return helper")
        terminal.press("\x03")  # Ctrl-C is pdb's
        terminal.press("q\n")
        terminal.wait_for("the keys again", "b debug")
        terminal.press("x")
        terminal.wait_for("other data", "Other random data")
        terminal.press("q")
