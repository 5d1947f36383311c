"""The checks of a system stay sealed in every interface, until a hint or an option opens them."""

import pytest
from click.testing import CliRunner

from dojo.cli import debug_command, main
from dojo.errors import DojoError
from dojo.learner.counting import Count
from dojo.learner.player import Player
from dojo.learner.watcher import Counted, Failed, Ran
from dojo.practice import session
from dojo.practice.loop import Action, FreeHunt, Hinted, RunFails, RunJudged, TimedHunt
from dojo.practice.planning import Planned
from dojo.practice.session import Names, Round
from dojo.testrun.results import check_functions
from dojo.wording.runs import run_lines

CHECKS = ("test_gradient_by_hand", "test_gradient_at_the_centre", "test_rate_falls")
SAID = ("the slope at", "the rate rises")


def tells(text):
    return [word for word in (*CHECKS, *SAID, "gradient", "slope") if word in text]


@pytest.mark.parametrize(
    "arguments", [[], ["-v", "-rA"], ["-n", "2"], ["--collect-only"], ["--durations=9", "-vv"]]
)
def test_plain_pytest_tells_nothing_of_a_check(run_pytest, system, arguments):
    result = run_pytest("katas/02_descent", *arguments)
    assert not tells(result.stdout + result.stderr)
    assert "check_02" in result.stdout or not arguments


def test_plain_pytest_counts_symptoms_and_checks(run_pytest, system):
    result = run_pytest("katas/02_descent")
    assert result.returncode == 1
    assert "after two steps the loss is" in result.stdout
    assert "02_descent: 2 of 2 symptoms, 3 of 3 checks fail" in result.stdout
    assert "02_descent: 0 of 2 bugs fixed" in result.stdout


def test_plain_pytest_opens_all_if_asked(run_pytest, system):
    result = run_pytest("katas/02_descent", "--open-checks", "-v")
    assert set(tells(result.stdout)) >= {*CHECKS, "the rate rises"}
    assert "check_0" not in result.stdout


def test_a_sealed_check_is_selected_by_its_number(run_pytest, system):
    by_id = run_pytest("katas/02_descent/test_descent.py::check_01[1]")
    assert "1 failed" in by_id.stdout
    assert not tells(by_id.stdout)
    assert "2 failed" in run_pytest("katas/02_descent", "-k", "check_01").stdout
    assert "6 deselected" in run_pytest("katas/02_descent", "-k", "gradient", "-q").stdout


def test_lf_remembers_sealed_checks(run_pytest, system):
    run_pytest("katas/02_descent")
    system.botched.write_text(system.planted_source(["rate-rises"]))
    again = run_pytest("katas/02_descent", "--lf")
    assert "2 failed" in again.stdout
    assert not tells(again.stdout)


def test_a_sealed_check_has_the_same_random_data_as_an_open_one(run_pytest, system):
    tests = system.tests.read_text()
    system.tests.write_text(
        f"import random\n{tests}\n\n"
        "def test_data(impl):\n    print('drawn', random.random())\n    impl.gradient(0.0, 0.0)\n"
    )
    drawn = {
        line
        for option in ([], ["--open-checks"])
        for line in run_pytest(
            "katas/02_descent", "--kata-seed=5", "-s", "-q", *option
        ).stdout.splitlines()
        if "drawn" in line
    }
    assert len({line.partition("drawn")[2] for line in drawn}) == 1


def test_a_solution_is_not_sealed(run_pytest, system, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(system.planted_source(["half-the-slope"]))
    assert "test_gradient_by_hand" in run_pytest("katas/02_descent", "--impl", mine).stdout


def test_a_solved_system_is_solved(run_pytest, system):
    system.botched.write_text(system.correct_source)
    result = run_pytest("katas/02_descent")
    assert result.returncode == 0
    assert "02_descent: solved, 2 of 2 bugs fixed" in result.stdout


def test_check_counts_what_is_sealed_and_opens_it_if_asked(project, system):
    def check(*options):
        return CliRunner().invoke(main, ["check", "descent", *options], obj=project).output

    sealed = check()
    assert "fails: test_the_loss_falls_at_once" in sealed
    assert "2 of 2 symptoms, 3 of 3 checks fail" in sealed
    assert not tells(sealed)
    assert set(CHECKS) <= set(tells(check("--open")))


def test_the_first_hints_open_the_check_that_says_most_of_each_bug(project, system, history):
    player = Player(project, system, history)
    assert player.sealed() == frozenset(CHECKS)
    first = player.give_hint()
    # test_gradient_by_hand fails for two bugs of the catalogue, this for one alone.
    assert first.startswith("Hint 1 of 2, bug 1 of 2: the check test_gradient_at_the_centre")
    assert player.sealed() == {"test_gradient_by_hand", "test_rate_falls"}
    assert "test_rate_falls" in player.give_hint()
    assert player.sealed() == {"test_gradient_by_hand"}
    assert player.give_hint().endswith("Where does it come to rest?")
    assert player.hints_given()[0] == first


def test_a_hint_shows_the_last_run_again_with_what_it_opened(project, system, history, runner):
    hunt = FreeHunt(Player(project, system, history))
    result = runner.run(system, seed=0)
    (judged,) = hunt.handle(Ran(result))
    assert judged.sealed == frozenset(CHECKS)
    assert not tells("\n".join(run_lines("x", result, judged.judgement, sealed=judged.sealed)))
    hunt.handle(Counted(Count(()), result.revision))
    hinted, again = hunt.handle(Action.HINT)
    assert isinstance(hinted, Hinted)
    lines = run_lines("x", result, again.judgement, sealed=again.sealed)
    assert "  fails: test_gradient_at_the_centre" in lines


def test_the_first_failure_is_told_only_of_what_is_open(project, system, history, runner):
    hunt = FreeHunt(Player(project, system, history))
    tests = runner.run(system, seed=0).tests
    told = [event.test.function for test in tests for event in hunt.handle(Failed(test))]
    assert told == ["test_the_loss_falls", "test_the_loss_falls_at_once"]


def test_an_interview_shows_symptoms_and_opens_the_checks_once_half_the_time_is_gone(
    project, system, history, runner
):
    seconds = 0.0
    practice = session.begin(
        project, history, [Planned(system, system.default, 8.0)], interview=True
    )
    (exercise,) = practice.exercises()
    player = Player(project, system, history)
    hunt = TimedHunt(Round(player, exercise, practice.session, lambda: seconds))
    result = runner.run(system, seed=0)
    failed = next(test for test in result.tests if test.symptom)
    assert hunt.handle(Failed(failed)) == [RunFails(failed)]
    (judged,) = hunt.handle(Ran(result))
    assert judged.names is Names.LATER
    lines = run_lines("x", result, judged.judgement, names=judged.names, sealed=judged.sealed)
    assert "  fails: test_the_loss_falls" in lines
    assert not tells("\n".join(lines))
    assert not any("of 3 checks" in line for line in lines)
    seconds = 4.5
    *_, judged = (event for event in hunt.handle(Ran(result)) if isinstance(event, RunJudged))
    assert judged.sealed == frozenset()
    lines = run_lines("x", result, judged.judgement, names=judged.names, sealed=judged.sealed)
    assert "  fails: test_gradient_by_hand (2 of 2 cases)" in lines


def test_checks_are_the_tests_that_are_no_symptoms(system):
    assert check_functions(system.tests) == set(CHECKS)


def test_show_and_debug_open_no_sealed_check(project, system):
    system.botched.write_text(system.correct_source.replace(" * (1 - step / steps)", ""))
    result = CliRunner().invoke(main, ["show", "descent"], obj=project)
    assert "only sealed checks fail; scripts/hint.sh 02_descent opens one" in result.output
    result = CliRunner().invoke(main, ["show", "descent", "test_gradient_by_han"], obj=project)
    assert not tells(result.output.replace("test_gradient_by_han'", ""))
    seed, sealed = 0, frozenset(CHECKS)
    with pytest.raises(DojoError, match="only sealed checks fail"):
        debug_command._first_failing(project, system, seed, sealed)
    system.botched.write_text(system.planted_source(system.default))
    assert debug_command._first_failing(project, system, seed, sealed) == "test_the_loss_falls"
