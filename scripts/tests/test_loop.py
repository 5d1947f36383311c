"""The loop of a hunt, with made-up runs and a clock that the test moves."""

import subprocess
import sys

import pytest

from dojo.cli.events import event_lines
from dojo.history.sessions import Ending
from dojo.learner.counting import Count
from dojo.learner.watcher import Counted, Failed, Key, Ran, Started, Tick
from dojo.practice import session
from dojo.practice.loop import (
    Action,
    BugsCounted,
    Compared,
    Ended,
    FreeHunt,
    Hinted,
    HintWaits,
    NextKata,
    Paused,
    Questioned,
    Refused,
    Replanted,
    RunFails,
    RunJudged,
    RunStarted,
    TimedHunt,
    TimeLeft,
    Undone,
)
from dojo.practice.planning import Planned
from dojo.practice.session import Names, Round
from dojo.project import Project
from dojo.testrun.results import Outcome, RunResult, TestResult, Verdict
from dojo.wording.events import event_line
from dojo.wording.keys import PRACTICE, WATCH, WORDS, keys_line
from dojo.wording.runs import run_lines

BUGS = ("adds-factor", "subtracts-offset")


def run(**outcomes):
    tests = [
        TestResult(f"test_{name}", Outcome[outcome.upper()], "message", 0.1, "abc")
        for name, outcome in outcomes.items()
    ]
    return Ran(RunResult.of(tests, 0.1))


class Time:
    seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def timed(project, player, history, time):
    def timed(budget=600.0, **kind):
        planned = [Planned(player.kata, BUGS, budget)]
        practice = session.begin(project, history, planned, **kind)
        (exercise,) = practice.exercises()
        return TimedHunt(Round(player, exercise, practice.session, time))

    return timed


@pytest.fixture
def free(player):
    player.plant(BUGS)
    return FreeHunt(player)


def test_a_failure_in_a_run_is_shown_unless_names_are_hidden(free, timed):
    test = TestResult("test_scale", Outcome.FAILED, "message", 0.1)
    assert free.handle(Failed(test)) == [RunFails(test)]
    assert event_lines(RunFails(test), "01_scale")[:2] == ["  fails: test_scale", "      message"]
    assert timed().handle(Failed(test)) == [RunFails(test)]
    assert timed(interview=True).handle(Failed(test)) == []


def test_what_the_code_printed_stands_under_what_the_test_says(free):
    test = TestResult("test_scale", Outcome.FAILED, "message", 0.1, printed="x is 5\n... 3 more")
    shown = ["      message", "      your code printed:", "      | x is 5", "      | ... 3 more"]
    assert event_lines(RunFails(test), "01_scale")[1:5] == shown
    (judged,) = free.handle(Ran(RunResult.of([test], 0.1)))
    assert event_lines(judged, "01_scale")[2:6] == shown


def test_what_a_file_that_does_not_load_printed_is_shown(free):
    test = TestResult("test_scale", Outcome.ERROR, "no", 0.1, printed="x is 5")
    (judged,) = free.handle(Ran(RunResult.of([test], 0.1)))
    assert event_lines(judged, "01_scale")[2:] == ["      your code printed:", "      | x is 5"]


def test_a_run_starts_and_is_judged(free):
    assert free.handle(Started()) == [RunStarted()]
    (event,) = free.handle(run(scale="failed", shift="passed"))
    assert isinstance(event, RunJudged)
    assert event.judgement.count is None
    assert event.count_follows
    assert event.left is None
    (counted,) = free.handle(Counted(Count(("subtracts-offset",)), "abc"))
    assert event_lines(counted, "01_scale")[0].startswith("01_scale: 1 of 2 bugs fixed. Stuck?")
    (counted,) = free.handle(Counted(Count(("subtracts-offset",), at_least=True), "abc"))
    assert event_lines(counted, "01_scale")[0].startswith("01_scale: at least 1 of 2 bugs fixed")


def test_an_interview_hides_the_count_but_records_it(timed, player, time):
    hunt = timed(budget=8.0, interview=True)
    hunt.handle(run(scale="failed", shift="passed"))
    assert hunt.handle(Counted(Count(("subtracts-offset",)), "abc")) == []
    assert player.history.last_count(player.attempt().id) == ("subtracts-offset",)
    time.seconds += 4.0
    assert BugsCounted in map(type, hunt.handle(Counted(Count(()), "abc")))


def test_hints_are_of_what_was_left_at_the_last_count(free, kata):
    free.handle(run(scale="passed", shift="failed"))
    free.handle(Counted(Count(("adds-factor",)), "abc"))
    (hint,) = free.handle(Action.HINT)
    assert kata.bug("subtracts-offset").hints[0] in hint.text


def test_the_diff_is_of_what_the_learner_changed(free, kata):
    assert free.handle(Action.DIFF) == [Compared("")]
    kata.botched.write_text(kata.botched.read_text() + "# mine\n")
    (compared,) = free.handle(Action.DIFF)
    assert "+# mine" in compared.diff
    assert event_line(Compared("")) == "You have changed nothing yet."


def test_reset_and_undo(free, kata):
    mine = kata.botched.read_text() + "# mine\n"
    kata.botched.write_text(mine)
    assert free.handle(Action.RESET) == [Replanted(kept=True)]
    assert "# mine" not in kata.botched.read_text()
    assert free.handle(Action.UNDO) == [Undone()]
    assert kata.botched.read_text() == mine


def test_the_next_kata_or_quit_ends_a_free_hunt(player):
    assert FreeHunt(player).handle(Action.NEXT) == [NextKata()]
    assert FreeHunt(player).handle(Action.QUIT) == [Ended()]


def test_what_cannot_be_done_is_an_event_and_no_end(free, player):
    player.workspace.record(99)  # the history has lost what is planted
    (refused,) = free.handle(Action.DIFF)
    assert isinstance(refused, Refused)
    assert "no longer knows what is planted" in event_line(refused)
    assert free.handle(Started()) == [RunStarted()]


def test_a_reset_plants_the_default_bugs_where_nobody_knows_which_were_planted(free, kata, player):
    player.workspace.record(99)  # the history has lost what is planted
    assert free.handle(Action.RESET) == [Replanted(kept=True)]
    assert kata.botched.read_text() == kata.planted_source(kata.default)
    assert player.attempt().planted == kata.default


def test_nothing_to_undo_is_said(player):
    (refused,) = FreeHunt(player).handle(Action.UNDO)
    assert "nothing to undo" in event_line(refused)


def test_actions_of_the_other_kind_of_hunt_do_nothing(free, timed):
    for action in (Action.PAUSE, Action.SKIP, Action.REVEAL):
        assert free.handle(action) == []
    hunt = timed()
    for action in (Action.RESET, Action.UNDO, Action.NEXT):
        assert hunt.handle(action) == []


def test_solved_ends_a_timed_hunt_and_no_free_one(free, timed):
    solved = run(scale="passed", shift="passed")
    assert [type(event) for event in free.handle(solved)] == [RunJudged]
    judged, ended = timed().handle(solved)
    assert judged.judgement.solved
    assert ended == Ended(Ending.SOLVED)


def test_the_clock_warns_once_each_and_ends_the_hunt(timed, time):
    hunt = timed(budget=302.0)
    said = []
    for _ in range(305):
        time.seconds += 1.0
        said += hunt.handle(Tick())
    assert said[:3] == [TimeLeft(300.0), TimeLeft(60.0), Ended(Ending.MISSED)]
    assert event_line(TimeLeft(300.0)) == "5:00 left"


def test_a_budget_below_a_warning_is_not_warned_of(timed, time):
    hunt = timed(budget=30.0)
    time.seconds += 1.0
    assert hunt.handle(Tick()) == []


def test_a_pause_stops_the_clock_and_a_save_ends_it(timed, time):
    hunt = timed(budget=100.0)
    assert hunt.handle(Action.PAUSE) == [Paused(stands=True)]
    for _ in range(40):
        time.seconds += 4.0
        assert hunt.handle(Tick()) == []
    assert hunt.handle(Started()) == [RunStarted()]  # waiting for the tests counts as little
    for _ in range(40):
        time.seconds += 4.0
        assert hunt.handle(Tick()) == []
    (judged,) = hunt.handle(run(scale="failed", shift="failed"))
    assert judged.left == 100.0
    assert hunt.handle(Action.PAUSE) == [Paused(stands=True)]
    assert hunt.handle(Action.PAUSE) == [Paused(stands=False)]


@pytest.mark.parametrize(
    ("action", "ending"),
    [(Action.SKIP, Ending.SKIPPED), (Action.REVEAL, Ending.REVEALED), (Action.QUIT, None)],
)
def test_skip_reveal_and_quit_end_a_timed_hunt(timed, action, ending):
    assert timed().handle(action) == [Ended(ending)]


def test_nothing_comes_of_what_happens_once_a_hunt_is_over(timed, time, history):
    hunt = timed(budget=100.0)
    assert hunt.handle(Action.QUIT) == [Ended()]
    assert hunt.over
    history.close()  # whatever would still be recorded fails
    for _ in range(40):
        time.seconds += 4.0
        assert hunt.handle(Tick()) == []
    assert hunt.handle(run(scale="passed", shift="passed")) == []
    assert hunt.handle(Action.HINT) == []


def test_an_interview_gives_no_hints_and_names_no_test_before_half_time(timed, time):
    hunt = timed(budget=100.0, interview=True)
    assert hunt.handle(Action.HINT) == [Hinted("an interview gives no hints")]
    failed = run(scale="failed", shift="failed")
    assert [event.names for event in hunt.handle(failed)] == [Names.LATER]
    for _ in range(11):
        time.seconds += 5.0
        hunt.handle(Tick())
    judged = [event for event in hunt.handle(failed) if event != TimeLeft(60.0)]
    assert [event.names for event in judged] == [Names.SHOWN]


def test_a_quiet_session_says_no_more_than_solved_or_not(timed, time):
    hunt = timed(budget=100.0, quiet=True)
    time.seconds += 90.0
    (judged, *_) = hunt.handle(run(scale="failed", shift="failed"))
    assert run_lines("01_scale", judged.result, judged.judgement, names=judged.names) == [
        "01_scale: not yet"
    ]
    assert not any(
        isinstance(event, BugsCounted) for event in hunt.handle(Counted(Count(()), "abc"))
    )
    assert hunt.handle(Action.HINT)[0].text.startswith("Hint 1 of 3")


def test_a_crash_names_its_test_where_names_are_shown(timed):
    crashed = RunResult(Verdict.CRASHED, (), "it was killed", 0.1, running="test_scale[3.0]")
    judgement = timed().round.judge(crashed)
    shown = run_lines("01_scale", crashed, judgement)
    hidden = run_lines("01_scale", crashed, judgement, names=Names.LATER)
    assert shown == ["01_scale: no verdict: it was killed (in test_scale[3.0])"]
    assert hidden == ["01_scale: no verdict: it was killed"]


def pressed(hunt, *characters):
    class Watcher:
        def events(self, tick_seconds):
            yield from map(Key, characters)

    return list(hunt.events(Watcher(), PRACTICE, 0.1))


def test_what_ends_a_kata_is_asked_twice(timed):
    hunt = timed(budget=100.0)
    assert pressed(hunt, "s", "?") == [Questioned(Action.SKIP)]
    assert pressed(hunt, "y") == []  # the question is past
    assert pressed(hunt, "r", "s", "y") == [
        Questioned(Action.REVEAL),
        Questioned(Action.SKIP),
        Ended(Ending.SKIPPED),
    ]


def test_a_digit_asks_for_a_hint_on_that_bug(timed):
    hunt = timed(budget=100.0)
    total = len(hunt.round.player.planting().bugs)
    (last, none) = pressed(hunt, str(total), "9")
    assert last.text.startswith("Hint 1 of")
    assert total == 1 or f"bug {total} of {total}" in last.text
    assert f"no bug 9 of {total}" in none.text


def test_a_hint_waits_until_the_bugs_that_are_gone_are_counted(free):
    free.handle(run(scale="failed", shift="failed"))
    assert free.handle(Action.HINT) == [HintWaits()]
    counted, hinted = free.handle(Counted(Count(("adds-factor",)), "abc"))
    assert isinstance(counted, BugsCounted)
    assert hinted == Hinted("Hint 1 of 2, bug 2 of 2: Which way does it shift?")
    (again,) = free.handle(Action.HINT)
    assert isinstance(again, Hinted)


def test_a_hint_that_waits_comes_in_a_quiet_session_too(timed):
    hunt = timed(quiet=True)
    hunt.handle(run(scale="failed", shift="failed"))
    assert hunt.handle(Action.HINT) == [HintWaits()]
    (hinted,) = hunt.handle(Counted(Count(()), "abc"))
    assert isinstance(hinted, Hinted)
    assert hinted.text.startswith("Hint 1 of 3")


def test_keys_are_actions_and_unknown_ones_nothing(free):
    class Watcher:
        def events(self, tick_seconds):
            yield from (Key("?"), Started(), Key("n"), Started())

    events = free.events(Watcher(), {"n": Action.NEXT}, 0.1)
    assert list(events) == [RunStarted(), NextKata()]


def test_every_key_has_its_word_and_each_action_a_key():
    assert (
        keys_line(PRACTICE)
        == "h hint  1-9 on that bug  d diff  p pause  s skip  r reveal  q quit  "
        "n ... note of what you suspect  i probe  b debug  v heat maps  x new data"
    )
    assert keys_line(PRACTICE, hints=False).startswith("d diff  p pause")
    assert (
        keys_line(WATCH)
        == "h hint  1-9 on that bug  d diff  r reset  u undo  n next kata  q quit  "
        "i probe  b debug  v heat maps  x new data"
    )
    assert {*PRACTICE.values(), *WATCH.values()} == set(Action) == set(WORDS)


def test_the_interface_imports_no_pytest():
    code = """
import importlib, pathlib, sys
sys.path.insert(0, "scripts")
for room in ("wording", "tui", "cli"):
    for path in pathlib.Path("scripts/dojo", room).glob("*.py"):
        if path.stem != "mutants":  # it needs cosmic-ray
            importlib.import_module(f"dojo.{room}.{path.stem}")
assert {"dojo.wording.verdicts", "dojo.tui.app", "dojo.cli.watch_command"} <= set(sys.modules)
print(*(name for name in ("pytest", "_pytest", "torch", "triton") if name in sys.modules))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Project.here().root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == ""
