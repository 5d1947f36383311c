import random
from dataclasses import replace
from datetime import date, timedelta

import pytest

from dojo.errors import DojoError
from dojo.history.history import History, Run
from dojo.history.sessions import Ending
from dojo.kata import catalogue
from dojo.kata.drawing import draw_bugs
from dojo.kata.kata import Level, Topic
from dojo.practice import scheduler
from dojo.practice.planning import Wishes, choose_bugs, plan
from dojo.project import Project

KATAS = [kata for kata in catalogue.finished(Project.here()) if not kata.needs_triton]


@pytest.fixture
def history(tmp_path):
    history = History(tmp_path / "history.sqlite")
    yield history
    history.close()


def practise(history, kata, grade):
    sessions = history.sessions
    session = sessions.begin([(kata, ["x"], 600.0)])
    (exercise,) = sessions.exercises(session.id)
    sessions.end_exercise(exercise.id, Ending.SOLVED, 60.0, grade)
    sessions.end(session.id)


def test_a_first_session_is_easy_fits_its_time_and_plants_the_default_bugs(history):
    planned = plan(KATAS, history, Wishes())
    assert sum(item.kata.minutes for item in planned) <= 45
    assert sum(item.budget for item in planned) == pytest.approx(45 * 60)
    assert planned[0].kata.level == "easy"
    assert all(item.bugs == item.kata.default for item in planned)
    shares = {round(item.budget / item.kata.minutes, 6) for item in planned}
    assert len(shares) == 1


def test_wishes_are_kept(history):
    planned = plan(KATAS, history, Wishes(topic="convolution", katas=2, minutes=20))
    assert [item.kata.topic for item in planned] == ["convolution"] * 2
    assert sum(item.budget for item in planned) == pytest.approx(1200)
    (only,) = plan(KATAS, history, Wishes(level="hard", minutes=5))
    assert only.kata.level == "hard"  # one at least, however little time
    with pytest.raises(DojoError, match=r"list\.sh"):
        plan(KATAS, history, Wishes(topic=Topic.SYSTEMS, level=Level.EASY))


def test_named_katas_get_their_own_time(history):
    named = (KATAS[5], KATAS[0])
    planned = plan([], history, Wishes(named=named))
    assert [(item.kata, item.budget) for item in planned] == [
        (kata, 60 * kata.minutes) for kata in named
    ]


def test_what_is_due_comes_first_and_what_is_not_comes_last(history, monkeypatch):
    names = [kata.name for kata in KATAS]
    for name in names[:3]:
        practise(history, name, 4)
    far = scheduler.due(history.sessions.exercises())
    long_ago = {names[2]: far[names[2]].replace(year=2020)}
    monkeypatch.setattr(scheduler, "due", lambda *_: {**far, **long_ago})
    ordered = [item.kata.name for item in plan(KATAS, history, Wishes(katas=len(KATAS)))]
    assert ordered[0] == names[2]
    assert set(ordered[-2:]) == set(names[:2])


def test_the_interview_date_brings_katas_forward(history):
    practise(history, KATAS[0].name, 4)
    wishes = Wishes(katas=1, interview_on=date.today())
    (first,) = plan(KATAS, history, wishes)
    assert first.kata == KATAS[0]


def test_a_seed_gives_the_same_session_whatever_was_practised(history, tmp_path):
    wishes = Wishes(seed=7, katas=3)
    before = plan(KATAS, history, wishes)
    for item in before:
        practise(history, item.kata.name, 4)
        history.start(item.kata.name, item.bugs)
    assert plan(KATAS, history, wishes) == before
    assert plan(KATAS, history, replace(wishes, seed=8)) != before


def test_no_set_of_bugs_comes_again_while_others_are_left(history):
    kata = next(kata for kata in KATAS if kata.level == "easy")
    rng = random.Random(0)
    planted = []
    for _ in range(len(kata.bugs)):
        bugs = choose_bugs(kata, history, Wishes(), rng)
        history.start(kata.name, bugs)
        planted.append(bugs)
    assert planted[0] == kata.default
    assert len(set(planted)) == len(kata.bugs)  # one bug each, all different
    again = choose_bugs(kata, history, Wishes(), rng)
    assert again != planted[-1]


def test_an_interview_draws_no_easy_kata_unless_asked_for(history):
    planned = plan(KATAS, history, Wishes(interview=True, katas=len(KATAS)))
    assert "easy" not in {item.kata.level for item in planned}
    (easy,) = plan(KATAS, history, Wishes(interview=True, katas=1, level="easy"))
    assert len(easy.bugs) == most_together(easy.kata, 3)


def most_together(kata, count):
    """How many bugs go together, up to a count: of some katas all touch the same lines."""
    try:
        return len(draw_bugs(kata, count, seed=0))
    except DojoError:
        return most_together(kata, count - 1)


def test_an_interview_plants_three_bugs_even_in_an_easy_kata(history):
    kata = next(kata for kata in KATAS if kata.level == "easy")
    assert len(choose_bugs(kata, history, Wishes(interview=True), random.Random(0))) == 3


def test_katas_solved_elsewhere_are_not_new(history):
    easy = [kata for kata in KATAS if kata.level == "easy"]
    for kata in easy[1:]:
        attempt = history.start(kata.name, kata.default)
        history.add_run(attempt, Run("abc", 3, 0, kata.default, True, 0.1))
    (first,) = plan(KATAS, history, Wishes(katas=1))
    assert first.kata == easy[0]


def test_the_interview_date_is_remembered_until_it_has_passed(history):
    sessions = history.sessions
    assert sessions.interview_on() is None
    day = date.today() + timedelta(days=1)
    sessions.begin([("x", [], 60.0)], interview_on=day)
    sessions.begin([("x", [], 60.0)])
    assert sessions.interview_on() == day
    practise(history, KATAS[0].name, 4)
    due = scheduler.due(sessions.exercises(), sessions.interview_on())
    assert due[KATAS[0].name].date() == day
    sessions.begin([("x", [], 60.0)], interview_on=date.today() - timedelta(days=1))
    assert sessions.interview_on() is None


def test_fresh_bugs_are_in_no_catalogue(history):
    for item in plan(KATAS, history, Wishes(fresh=True, katas=3)):
        assert len(item.bugs) == len(item.kata.default)
        assert all(bug.startswith("fresh-") for bug in item.bugs)
        assert item.kata.planted_source(item.bugs) != item.kata.correct_source
