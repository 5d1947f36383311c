"""The bug of the day, and a mixed session: reviews, hunts and proofs in turn."""

from datetime import date, timedelta

import pytest
from click.testing import CliRunner

import dojo.cli.practice_command
import dojo.cli.rounds
from dojo.cli import main
from dojo.history.history import History
from dojo.kata import catalogue
from dojo.practice.daily import Discipline, daily
from dojo.project import Project

MONDAY = date(2026, 11, 30)
KATAS = catalogue.load_all(Project.here())


def days(number):
    return [MONDAY + timedelta(days=after) for after in range(number)]


def on(monkeypatch, discipline):
    """Have it be a day of that discipline; return the day."""
    day = next(day for day in days(3) if daily(KATAS, day).discipline is discipline)

    class Today(date):
        @classmethod
        def today(cls):
            return day

    monkeypatch.setattr(dojo.cli.practice_command, "date", Today)
    return day


@pytest.fixture
def practice(project):
    def practice(*arguments, **options):
        return CliRunner().invoke(main, ["practice", *arguments], obj=project, **options)

    return practice


def test_the_disciplines_take_turns_and_everyone_gets_the_same():
    asked = [daily(KATAS, day) for day in days(6)]
    assert asked == [daily(KATAS, day) for day in days(6)]
    names = [one.discipline for one in asked]
    assert names[:3] == names[3:]
    assert set(names) == set(Discipline)


def test_no_bug_comes_twice_in_a_year_of_hunting_and_each_can_be_told_in_ten_minutes():
    hunts = [one for day in days(365) if (one := daily(KATAS, day)).discipline is Discipline.HUNT]
    assert len({(one.kata.name, one.bug.id) for one in hunts}) == len(hunts) >= 121
    for one in hunts:
        assert not one.kata.needs_triton
        assert not one.kata.is_system
        assert one.kata.planted_source([one.bug.id]) != one.kata.correct_source


def test_a_proof_is_asked_only_of_a_bug_with_a_story_of_its_own():
    proofs = [one for day in days(90) if (one := daily(KATAS, day)).discipline is Discipline.PROOF]
    assert not [one for one in proofs if one.bug.id.startswith("fresh-")]


def test_a_day_of_reading_is_taken_once_and_counts_for_the_streak(practice, project, monkeypatch):
    day = on(monkeypatch, Discipline.REVIEW)
    with History(project.history) as history:
        history.dailies.add(day - timedelta(days=1), found=True)
    result = practice("--daily", input="a\na\na\n")
    assert result.exit_code == 0, result.output
    assert "the bug of the day: a review." in result.output
    assert "3 requests: " in result.output
    assert "Your streak: 2 days." in result.output
    again = practice("--daily")
    assert "Today's bug is done" in again.output
    assert "Request 1" not in again.output


def test_a_day_that_was_left_goes_on(practice, project, monkeypatch):
    day = on(monkeypatch, Discipline.REVIEW)
    result = practice("--daily", input="a\nq\n")
    assert "The day is not over" in result.output
    with History(project.history) as history:
        assert day not in history.dailies.all()


def test_a_day_of_hunting_plants_its_bug_and_goes_on_with_it(practice, project, kata, monkeypatch):
    day = on(monkeypatch, Discipline.HUNT)
    left = practice("--daily", input="q\n")
    assert left.exit_code == 0, left.output
    asked = daily([kata], day)
    assert kata.botched.read_text() == kata.planted_source([asked.bug.id])
    kata.botched.write_text(kata.correct_source)
    result = practice("--daily")
    assert "Your streak: 1 day." in result.output
    with History(project.history) as history:
        assert history.dailies.all() == {day: True}
        assert len(history.sessions.all()) == 1


def test_a_day_of_proving_tells_the_bug_and_is_over_when_it_is_caught(
    practice, project, kata, monkeypatch
):
    day = on(monkeypatch, Discipline.PROOF)
    kata.proof.write_text(
        "def test_a(impl):\n    assert impl.scale(5.0, 2.0) == 10.0\n\n\n"
        "def test_b(impl):\n    assert impl.shift(5.0, 2.0) == 7.0\n"
    )
    result = practice("--daily")
    assert daily([kata], day).bug.title in result.output
    assert "1 of 1 wrong version caught" in result.output
    with History(project.history) as history:
        assert history.dailies.all() == {day: True}


def test_a_mixed_session_is_a_review_a_hunt_and_a_proof(practice, project, kata, monkeypatch):
    monkeypatch.setattr(dojo.cli.rounds, "_REVIEW_MINUTES", 0.0)
    monkeypatch.setattr(dojo.cli.rounds, "_HUNT_MINUTES", 0.02)
    monkeypatch.setattr(dojo.cli.rounds, "_PROOF_MINUTES", 0.02)
    result = practice("--mix")
    assert result.exit_code == 0, result.output
    places = [result.output.index(f"{number} of 3: ") for number in (1, 2, 3)]
    assert places == sorted(places)
    with History(project.history) as history:
        assert len(history.sessions.exercises()) == 1
        assert len(history.proofs.all()) == 1


def test_a_wish_beside_a_day_is_refused(practice):
    for arguments in (["--daily", "--mix"], ["--daily", "scale"], ["--mix", "--prove"]):
        result = practice(*arguments)
        assert result.exit_code == 2
        assert "choose everything" in result.output
