import pytest

from dojo.errors import DojoError
from dojo.kata.kata_toml import load
from dojo.learner.counting import Count
from dojo.learner.hints import next_hint
from dojo.learner.player import Planting, Player
from dojo.testrun.results import Outcome, RunResult, TestResult, Verdict
from dojo.wording.verdicts import verdict_line


def outcome(name, outcome):
    return TestResult(name, outcome, "message", 0.1, "abc")


def test_hints_go_round_and_pass_over_what_is_gone(kata):
    planted = [kata.bug("adds-factor"), kata.bug("subtracts-offset")]
    given = set()
    order = []
    while hint := next_hint(kata, planted, [], given):
        given.add((hint[0].id, hint[1]))
        order.append((hint[0].id, hint[1]))
    adds, subtracts = "adds-factor", "subtracts-offset"
    assert order == [(adds, 0), (subtracts, 0), (adds, 1), (subtracts, 1), (adds, 2)]
    assert next_hint(kata, planted, [adds], {(subtracts, 0)}) == (planted[1], 1)
    assert next_hint(kata, planted, [adds, subtracts], set()) is None


def test_a_hint_can_be_about_one_bug_and_is_read_again(player):
    player.plant(["adds-factor", "subtracts-offset"])
    assert player.give_hint(2).startswith("Hint 1 of 2, bug 2 of 2: ")
    assert player.give_hint(2).startswith("Hint 2 of 2, the last on bug 2 of 2: ")
    assert "no more hints on bug 2" in player.give_hint(2)
    assert "there is no bug 3 of 2" in player.give_hint(3)
    assert [line.partition(":")[0] for line in player.hints_given()] == [
        "Hint 1 of 2, bug 2 of 2",
        "Hint 2 of 2, the last on bug 2 of 2",
    ]
    failing = [outcome("test_scale[2.0]", Outcome.FAILED)]
    player.record(RunResult(Verdict.FAILED, tuple(failing), "", 0.2, "abc"))
    player.record_count(Count(("adds-factor",)), "abc")
    assert "bug 1 of 2 is fixed" in player.give_hint(1)


def test_a_file_put_back_to_the_committed_text_is_said_to_hold_other_bugs(player, kata):
    player.plant(["subtracts-offset"])
    failing = RunResult(Verdict.FAILED, (outcome("test_shift", Outcome.FAILED),), "", 0.2, "abc")
    assert "holds the kata's default" not in verdict_line(player.record(failing), "01_scale")
    kata.botched.write_text(kata.planted_source(kata.default))
    said = "your file holds the kata's default bug, not what was planted last"
    assert said in verdict_line(player.record(failing), "01_scale")
    assert said in verdict_line(
        player.record_count(Count(("subtracts-offset",)), "abc"), "01_scale"
    )


def test_a_run_is_recorded_and_judged(player):
    failing = [outcome("test_scale[2.0]", Outcome.FAILED), outcome("test_shift", Outcome.PASSED)]
    judgement = player.record(RunResult(Verdict.FAILED, tuple(failing), "", 0.2, "abc"))
    assert not judgement.solved
    assert judgement.count is None
    attempt = player.attempt().id
    assert player.history.last_run(attempt).gone is None
    assert player.record_count(Count(()), "abc").count == Count(())
    assert player.history.last_run(attempt).gone == ()
    passing = [outcome("test_scale[2.0]", Outcome.PASSED), outcome("test_shift", Outcome.PASSED)]
    judgement = player.record(RunResult(Verdict.PASSED, tuple(passing), "", 0.2, "def"))
    assert judgement.solved
    assert judgement.count == Count(player.kata.default)
    assert player.history.solved_katas() == {"01_scale"}
    assert player.history.runs(player.attempt().id) == 2


def test_a_run_that_broke_proves_nothing(player):
    broken = [outcome("test_scale[2.0]", Outcome.ERROR), outcome("test_shift", Outcome.SKIPPED)]
    assert player.record(RunResult(Verdict.BROKEN, tuple(broken), "", 0.2)).count is None
    assert player.history.last_run(player.attempt().id).gone == ()
    player.record_count(Count(("adds-factor",)), "")
    crashed = (outcome("test_shift", Outcome.PASSED),)
    judgement = player.record(RunResult(Verdict.CRASHED, crashed, "", 0.2))
    assert judgement.count is None
    assert not judgement.solved
    # So a hint need not run the tests again, and is not about what is gone.
    assert player.history.last_run(player.attempt().id).gone == ("adds-factor",)


def test_a_reset_starts_a_new_attempt(player):
    first = player.attempt().id
    player.plant(["subtracts-offset"])
    assert player.attempt().id != first
    assert [bug.id for bug in player.planting().bugs] == ["subtracts-offset"]
    assert "-    moved = x - offset" not in player.diff_from_planted()
    assert "+    moved = x + offset" in player.diff_to_correct()


def test_an_unknown_recorded_bug_is_said_and_never_replaced_by_others(player, kata, project):
    player.plant(["divides"])
    text = kata.folder / "kata.toml"
    text.write_text(text.read_text().replace('"divides"', '"divides-twice"'))
    now = Player(project, load(kata.folder), player.history)
    assert now.planting() == Planting((), ("divides",))
    assert "no longer has (divides); scripts/reset.sh 01_scale" in now.give_hint()
    failed = RunResult.of([outcome("test_scale[2.0]", Outcome.FAILED)], 0.1)
    assert "no longer has (divides)" in verdict_line(now.record(failed), "01_scale")
    passed = RunResult.of([outcome("test_scale[2.0]", Outcome.PASSED)], 0.1)
    assert "solved" in verdict_line(now.record(passed), "01_scale")
    with pytest.raises(DojoError, match="no longer has"):
        now.diff_from_planted()


def test_a_lost_history_is_said(player):
    player.workspace.record(99)
    assert player.planting() == Planting(())
    assert "no longer knows what is planted" in player.give_hint()


def test_the_attempt_of_another_kata_is_none_of_this_one(player):
    other = player.history.start("02_other", ["divides"])
    player.workspace.record(other)
    assert player.planting() == Planting(())
