import pytest

from dojo.errors import DojoError
from dojo.history.sessions import Ending
from dojo.learner.counting import Count
from dojo.learner.player import Player
from dojo.practice import session
from dojo.practice.planning import Planned
from dojo.practice.session import Names, Round
from dojo.testrun.results import Outcome, RunResult, TestResult, Verdict


@pytest.fixture
def begin(project, kata, history):
    def begin(*budgets, bugs=("adds-factor", "subtracts-offset"), interview=False):
        planned = [Planned(kata, bugs, budget) for budget in budgets]
        return session.begin(project, history, planned, interview=interview, interview_on=None)

    return begin


class Time:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def opened(project, kata, history, begin):
    """A round on a clock that the test moves."""
    time = Time()

    def opened(practice):
        exercise = next(item for item in practice.exercises() if item.ending is None)
        player = Player(project, kata, history)
        return Round(player, exercise, practice.session, time), time

    return opened


def run(**outcomes):
    tests = tuple(
        TestResult(f"test_{name}", outcome, "message", 0.1, "abc")
        for name, outcome in outcomes.items()
    )
    solved = all(test.outcome is Outcome.PASSED for test in tests)
    return RunResult(Verdict.PASSED if solved else Verdict.FAILED, tests, "", 0.1, "abc")


FAILING = run(scale=Outcome.FAILED, shift=Outcome.FAILED)
SOLVED = run(scale=Outcome.PASSED, shift=Outcome.PASSED)


def test_a_solved_kata_is_debriefed_and_graded(begin, opened):
    practice = begin(600.0)
    round_, time = opened(practice)
    round_.judge(FAILING)
    assert round_.hint().startswith("Hint 1 of 3, bug 1 of 2")
    time.seconds += 4
    assert round_.judge(SOLVED).solved
    debrief = round_.end(Ending.SOLVED)
    assert (debrief.spent, debrief.runs, debrief.hints, debrief.score) == (4, 2, 1, 90)
    assert {bug.id for bug in debrief.planted} == set(debrief.gone)
    (exercise,) = practice.exercises()
    assert (exercise.ending, exercise.grade, exercise.spent) == (Ending.SOLVED, 2, 4)


def test_half_of_the_bugs_give_half_of_the_points(begin, opened):
    round_, _ = opened(begin(600.0))
    round_.judge(FAILING)
    round_.player.record_count(Count(("adds-factor",)), "abc")
    round_.judge(FAILING)  # and the session ends before they are counted again
    debrief = round_.end(Ending.REVEALED)
    assert debrief.gone == ("adds-factor",)
    assert debrief.score == 50
    assert round_.player.attempt().revealed_at is not None


def test_the_wait_for_a_run_and_a_pause_are_not_the_learners_time(begin, opened):
    round_, time = opened(begin(600.0))
    round_.run_started()
    time.seconds += 3
    round_.judge(FAILING)
    time.seconds += 2
    assert round_.remaining() == 598
    assert round_.toggle_pause()
    time.seconds += 4
    assert round_.remaining() == 598
    round_.run_started()  # they go on working
    round_.judge(FAILING)
    assert not round_.paused


def test_a_session_that_was_cut_off_goes_on_where_it_stood(project, kata, history, begin, opened):
    practice = begin(600.0, 300.0)
    round_, time = opened(practice)
    round_.judge(FAILING)
    round_.hint()
    time.seconds += 4
    round_.remaining()  # nothing else tells it that the end is near
    kata.botched.write_text("# halfway\n")

    resumed = session.unfinished(project, history)
    standing = resumed.standing()
    assert (standing.kata, standing.left, standing.hints) == ("01_scale", 596, 1)
    assert standing.last_run.failed == 2
    again = resumed.next_round()
    assert 595 < again.remaining() <= 596
    assert kata.botched.read_text() == "# halfway\n"
    again.end(Ending.SKIPPED)
    assert resumed.standing().left == 300
    second = resumed.next_round()
    second.end(Ending.MISSED)
    none = resumed.next_round()
    assert none is None
    assert session.unfinished(project, history) is None
    assert [item.ending for item in resumed.exercises()] == [Ending.SKIPPED, Ending.MISSED]
    assert [item.ending for item in resumed.debriefs()] == [Ending.SKIPPED, Ending.MISSED]


def test_a_kata_that_was_planted_anew_or_removed_is_passed_over(project, kata, player, begin):
    practice = begin(600.0, 300.0)
    round_ = practice.next_round()
    round_.leave()
    player.plant(["divides"])
    round_ = practice.next_round()
    assert round_.budget == 300
    round_.leave()
    kata.folder.rename(project.root / "elsewhere")
    round_ = practice.next_round()
    assert round_ is None


def test_an_interview_names_tests_late_and_gives_no_hints(begin, opened):
    round_, time = opened(begin(10.0, interview=True))
    assert round_.names is Names.LATER
    assert "no hints" in round_.hint()
    time.seconds += 4.9
    assert round_.names is Names.LATER
    time.seconds += 0.1
    assert round_.names is Names.SHOWN


def test_the_last_time_is_remembered(begin, opened, history):
    assert session.last_time(history, "01_scale") is None
    practice = begin(600.0)
    round_, time = opened(practice)
    round_.hint()
    time.seconds += 5
    round_.end(Ending.MISSED)
    assert session.last_time(history, "01_scale") == (5, 1)


def test_a_second_session_at_once_is_refused(project):
    with session.alone(project):
        second = session.alone(project)
        with pytest.raises(DojoError, match="running in this checkout"):
            second.__enter__()
    with session.alone(project):
        pass


def test_ending_a_session_skips_what_was_not_reached(begin, history):
    practice = begin(600.0, 300.0)
    practice.end()
    sessions = history.sessions
    assert [item.ending for item in sessions.exercises()] == [Ending.SKIPPED] * 2
    assert sessions.unfinished() is None
    assert sessions.all()[0].ended_at is not None
