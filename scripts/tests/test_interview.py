"""An interview: which system it takes, the notes, and the report at its end."""

import random
import shutil
from dataclasses import replace

import pytest

from dojo.history.moves import MoveKind
from dojo.history.sessions import Ending
from dojo.kata import kata_toml
from dojo.learner.watcher import Key, Ran, Tick, Typed
from dojo.practice import session
from dojo.practice.loop import Note, Noted, Refused, TimedHunt
from dojo.practice.planning import INTERVIEW_PLANTS, Planned, Wishes, choose_bugs, plan
from dojo.practice.retrospect import look_back
from dojo.wording.debriefs import session_markdown
from dojo.wording.keys import PRACTICE
from dojo.wording.welcome import planted_line, welcome_lines


@pytest.fixture
def practice(project, system, history):
    return session.begin(project, history, [Planned(system, system.default, 600.0)], interview=True)


@pytest.fixture
def hunt(practice):
    return TimedHunt(practice.next_round())


class Happenings:
    """Stands for a watcher: what is put in comes out."""

    planted = ()

    def __init__(self, *happened):
        self._happened = happened

    def events(self, _):
        yield from self._happened


def test_a_bare_interview_takes_one_system_and_the_newest_to_the_learner(kata, system, history):
    (planned,) = plan([kata, system], history, Wishes(interview=True))
    assert planned.kata == system
    assert planned.budget == 45 * 60
    (planned,) = plan([kata, system], history, Wishes(interview=True, minutes=60))
    assert (planned.kata, planned.budget) == (system, 3600)
    folder = shutil.copytree(system.folder, system.folder.with_name("03_ascent"))
    other = kata_toml.load(folder)
    history.start(system.name, system.default)
    (planned,) = plan([kata, system, other], history, Wishes(interview=True))
    assert planned.kata == other
    history.start(other.name, other.default)
    (planned,) = plan([kata, system, other], history, Wishes(interview=True))
    assert planned.kata == system


def test_whoever_says_what_katas_gets_these(kata, system, history):
    for wishes in (Wishes(level=kata.level), Wishes(named=(kata,))):
        (planned,) = plan([kata, system], history, replace(wishes, interview=True))
        assert planned.kata == kata


def test_four_or_five_bugs_are_drawn(system, history):
    lines = "".join(f"def f{n}() -> int:\n    return {n}\n\n\n" for n in range(8))
    system.reference.write_text(lines)
    bugs = tuple(
        replace(
            system.bugs[0],
            id=f"bug-{n}",
            find=f"return {n}",
            replace=f"return 1{n}",
            killed_by=(f"test_{n}",),
        )
        for n in range(8)
    )
    many = replace(system, bugs=bugs, default=("bug-0", "bug-1"))
    drawn = {
        len(choose_bugs(many, history, Wishes(interview=True), random.Random(seed)))
        for seed in range(20)
    }
    assert drawn == set(INTERVIEW_PLANTS)


def test_the_number_of_bugs_is_told_roughly(practice):
    round_ = practice.next_round()
    assert planted_line(round_) == "4 or 5 bugs are planted"
    assert any("what you suspect" in line for line in welcome_lines(round_))


def test_a_typed_line_is_a_note(hunt, practice, history):
    events = [*hunt.events(Happenings(Typed("n the sign, I think\n")), PRACTICE, 0.1)]
    assert events == [Noted()]
    attempt = hunt.round.player.attempt()
    (move,) = history.moves.of(attempt.id)
    assert (move.kind, move.text) == (MoveKind.NOTE, "the sign, I think")


@pytest.mark.parametrize("happened", [Typed("n"), Typed("N  "), Key("n")])
def test_an_empty_note_is_refused_with_an_example(hunt, happened):
    (event,) = hunt.events(Happenings(happened), PRACTICE, 0.1)
    assert isinstance(event, Refused)
    assert "n the mask" in event.reason


def test_a_typed_letter_asks_as_a_key_does(hunt):
    (event,) = hunt.events(Happenings(Typed(" D iff please\n"), Typed("\n")), PRACTICE, 0.1)
    assert event.diff == ""


def test_the_report_sets_what_was_done_beside_the_bugs(project, system, practice, history, runner):
    hunt = TimedHunt(practice.next_round())
    player = hunt.round.player
    attempt = player.attempt()
    planted = system.botched.read_text()

    def run():
        result = runner.run(system, seed=0)
        hunt.handle(Ran(result))
        return result

    run()
    hunt.handle(Note("a | in the gradient"))
    history.moves.add(attempt.id, MoveKind.PROBE)
    system.botched.write_text(planted.replace("3.0)", "3.5)"))
    run()
    system.botched.write_text(planted)
    run()
    system.botched.write_text(planted.replace("2 * x - centre", "2 * (x - centre)"))
    player.judge(run(), runner)
    back = look_back(history, attempt)
    assert back.taken_back == 1
    assert back.first_edit < back.first_fix
    assert [entry.fixed for entry in back.entries][-1] == ("forgets-centre",)
    practice.finish(hunt.round, Ending.MISSED)
    (debrief,) = practice.debriefs()
    assert debrief.score == 50 - 5
    report = session_markdown(practice.session, [debrief])
    for said in (
        "Found 1 of 2 bugs: nearly the whole round.",
        "before the file can have been read.",
        "First looked closer after",
        ": probed the model.",
        "Said 1 time what they suspected.",
        "Took 1 edit back.",
        "| noted: a \\| in the gradient |",
        "; fixed: Forgets the centre |",
        "- [ ] Where is the slope 0?",
        "<details><summary>answer</summary>At the centre.</details>",
    ):
        assert said in report, said


def test_nothing_done_is_said(practice, history):
    hunt = TimedHunt(practice.next_round())
    assert hunt.handle(Tick()) == []
    practice.finish(hunt.round, Ending.MISSED)
    report = session_markdown(practice.session, practice.debriefs())
    assert "Nothing was edited." in report
    assert "Found 0 of 2 bugs: none yet." in report
